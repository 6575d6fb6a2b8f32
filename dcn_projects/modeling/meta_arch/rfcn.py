from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY

from dcn_projects.config import reads

from ..renamed_parameters import HasRenamedParameters
from ..roi_heads import RFCNROIHeads
from .mxnet_rcnn import MXNetFasterRCNN

__all__ = ["RFCN"]


def check_heads(cfg) -> None:
    """Raises ValueError if the heads are not those of R-FCN."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if not issubclass(ROI_HEADS_REGISTRY.get(name), RFCNROIHeads):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is RFCN and MODEL.ROI_HEADS.NAME {name}: set the latter "
            "to RFCNROIHeads, or the former to GeneralizedRCNN"
        )


@META_ARCH_REGISTRY.register()
@reads(checks=[check_heads])
class RFCN(HasRenamedParameters, MXNetFasterRCNN):
    """
    R-FCN (arXiv 1605.06409): an MXNetFasterRCNN with `RFCNROIHeads`, which have all that R-FCN is.

    Raises:
        ValueError: for other heads, in one line
    """

    # The score maps were layers of the model before they were layers of its heads.
    renamed_parameters = {r"(score_maps\..*)": r"roi_heads.\1"}

    @classmethod
    def from_config(cls, cfg):
        check_heads(cfg)
        return super().from_config(cfg)
