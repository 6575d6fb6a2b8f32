import detectron2.modeling
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dcn_projects.config import reads
from dcn_projects.layers import deformable

__all__ = ["build_deformable_model", "build_model", "meta_architecture"]


def build_model(cfg) -> nn.Module:
    """
    The model of a config, on its device: detectron2's `build_model`, and then the convolutions that
    MODEL.DEFORMABLE.SELECT names, if it names any, are made deformable: in any model, built in any
    way that detectron2 has. MODEL.DEFORMABLE.MODULATED and NUM_GROUPS say how.

    Raises:
        ValueError: if a pattern of SELECT matches no convolution, or one that cannot be deformable
    """
    model = detectron2.modeling.build_model(cfg)
    by_name = cfg.MODEL.META_ARCHITECTURE == build_deformable_model.__name__
    return model if by_name or not cfg.MODEL.DEFORMABLE.SELECT else _select(cfg, model)


@META_ARCH_REGISTRY.register()
@reads("MODEL.DEFORMABLE")
def build_deformable_model(cfg) -> nn.Module:
    """
    The same as a meta-architecture, for programs that call detectron2's own `build_model`: the
    model that MODEL.DEFORMABLE.META_ARCHITECTURE names, made deformable.

    Raises:
        ValueError: if META_ARCHITECTURE names this function, or a pattern of SELECT matches no
            convolution, or one that cannot be deformable
    """
    return _select(cfg, meta_architecture(cfg)(cfg))


def _select(cfg, model: nn.Module) -> nn.Module:
    keys = cfg.MODEL.DEFORMABLE
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
