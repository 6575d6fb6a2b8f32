from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN

from ..renamed_parameters import rename_parameters
from ..roi_heads import RFCNROIHeads

__all__ = ["RFCN"]


@META_ARCH_REGISTRY.register()
class RFCN(GeneralizedRCNN):
    """
    R-FCN (arXiv 1605.06409): a GeneralizedRCNN with `RFCNROIHeads`, which have all that R-FCN is.

    Raises:
        ValueError: for other heads, in one line
    """

    @classmethod
    def from_config(cls, cfg):
        name = cfg.MODEL.ROI_HEADS.NAME
        if not issubclass(ROI_HEADS_REGISTRY.get(name), RFCNROIHeads):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is RFCN and MODEL.ROI_HEADS.NAME {name}: set the latter "
                "to RFCNROIHeads, or the former to GeneralizedRCNN"
            )
        return super().from_config(cfg)

    def rename_old_parameters(self, state_dict: dict, prefix: str) -> None:
        """
        The score maps were layers of the model before they were layers of its heads. A program that
        compares shapes before it loads, as detectron2's checkpointer does, calls this first.

        Args:
            state_dict: changed in place
            prefix: of the names of this model in it
        """
        rename_parameters(state_dict, prefix, {r"(score_maps\..*)": r"roi_heads.\1"})

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        self.rename_old_parameters(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
