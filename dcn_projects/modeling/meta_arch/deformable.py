from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dcn_projects.layers import deformable

__all__ = ["build_deformable_model", "meta_architecture"]


@META_ARCH_REGISTRY.register()
def build_deformable_model(cfg) -> nn.Module:
    """
    The model that MODEL.DEFORMABLE.META_ARCHITECTURE names, with the convolutions that
    MODEL.DEFORMABLE.SELECT names made deformable: any model, built in any way that detectron2 has.

    Raises:
        ValueError: if a pattern of SELECT matches no convolution, or one that cannot be deformable
    """
    keys = cfg.MODEL.DEFORMABLE
    if keys.META_ARCHITECTURE == build_deformable_model.__name__:
        raise ValueError(
            "MODEL.DEFORMABLE.META_ARCHITECTURE must name the model whose convolutions become "
            f"deformable, such as GeneralizedRCNN, not {keys.META_ARCHITECTURE}"
        )
    model = META_ARCH_REGISTRY.get(keys.META_ARCHITECTURE)(cfg)
    try:
        return deformable(model, keys.SELECT, keys.MODULATED, keys.NUM_GROUPS)
    except ValueError as e:
        raise ValueError(f"MODEL.DEFORMABLE.SELECT is {list(keys.SELECT)}: {e}") from e


def meta_architecture(cfg) -> type[nn.Module]:
    """The class of the model that a config describes, also where its convolutions are swapped."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name == build_deformable_model.__name__:
        name = cfg.MODEL.DEFORMABLE.META_ARCHITECTURE
    return META_ARCH_REGISTRY.get(name)
