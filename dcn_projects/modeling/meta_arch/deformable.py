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
        ValueError: if META_ARCHITECTURE names this function, or a pattern of SELECT matches no
            convolution, or one that cannot be deformable
    """
    keys = cfg.MODEL.DEFORMABLE
    model = meta_architecture(cfg)(cfg)
    try:
        return deformable(model, keys.SELECT, keys.MODULATED, keys.NUM_GROUPS)
    except ValueError as e:
        raise ValueError(f"MODEL.DEFORMABLE.SELECT is {list(keys.SELECT)}: {e}") from e


def meta_architecture(cfg) -> type[nn.Module]:
    """
    The class of the model that a config describes, also where its convolutions are swapped.

    Raises:
        ValueError: if MODEL.DEFORMABLE.META_ARCHITECTURE is asked for, and names no such model
    """
    swaps = build_deformable_model.__name__
    if cfg.MODEL.META_ARCHITECTURE != swaps:
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    name = cfg.MODEL.DEFORMABLE.META_ARCHITECTURE
    if name == swaps:
        raise ValueError(
            "MODEL.DEFORMABLE.META_ARCHITECTURE must name the model whose convolutions become "
            f"deformable, such as GeneralizedRCNN, not {name}"
        )
    return META_ARCH_REGISTRY.get(name)
