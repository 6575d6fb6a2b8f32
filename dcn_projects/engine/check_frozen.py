"""Whether the layers that a training does not change were loaded."""

from collections.abc import Collection

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import nn

from dcn_projects.checkpoint import first_names
from dcn_projects.config_keys import leaves

__all__ = ["check_frozen"]

_NUM_NAMED = 3  # parameters that the error names


def check_frozen(cfg: CfgNode, model: nn.Module, at_random: Collection[str]) -> None:
    """
    A layer that is not trained keeps the numbers that it has. Random ones make the training
    diverge, or its result poor, and nothing would say why.

    Args:
        cfg: of the model
        at_random: names of the parameters and buffers that were not loaded
    Raises:
        ValueError: if frozen layers are among them; it names the keys that freeze layers
    """
    names = [name for name in frozen_names(model) if name in at_random]
    if not names:
        return
    source = f"{cfg.MODEL.WEIGHTS} lacks" if cfg.MODEL.WEIGHTS else "MODEL.WEIGHTS is '' and lacks"
    settings = [
        f"{key} BN (or GN, SyncBN)"
        for key, value in leaves(cfg)
        if key.endswith("NORM") and value == "FrozenBN"
    ]
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        settings.append("MODEL.BACKBONE.FREEZE_AT 0")
    advice = f", or set {' and '.join(settings)} to train them" if settings else ""
    raise ValueError(
        f"{source} {len(names)} parameters and buffers of frozen layers, which would stay as they "
        f"are at random: {', '.join(first_names(names, _NUM_NAMED))}. Give weights that have them"
        f"{advice}"
    )


def frozen_names(model: nn.Module) -> list[str]:
    """
    Names of what training does not change although it would be learnt in another config: frozen
    norms, and parameters without gradients in backbones. Elsewhere such a parameter may be meant to
    be constant.
    """
    names = dict.fromkeys(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, FrozenBatchNorm2d)
        for name in module.state_dict()
    )
    for path, module in model.named_modules():
        if isinstance(module, Backbone):
            prefix = f"{path}." if path else ""
            frozen = (n for n, p in module.named_parameters() if not p.requires_grad)
            names |= dict.fromkeys(prefix + name for name in frozen)
    return [name for name in model.state_dict() if name in names]
