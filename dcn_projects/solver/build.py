import logging
import re
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import maybe_add_gradient_clipping

__all__ = ["build_optimizer", "old_name"]

# How names of parameters were before version 0.2: regular expression of a name now -> the old name.
_OLD_NAMES = {
    r"\.conv2\.conv_offset\.": ".conv2_offset.",
    r"^roi_heads\.score_maps\.": "score_maps.",
}


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """
    detectron2's SGD, or AdamW with the same groups of parameters (SOLVER.OPTIMIZER). The learning
    rates of the parameters that SOLVER.LR_FACTORS names are multiplied by its factors; weight
    decay is left as it is.

    Raises:
        ValueError: for another optimizer, if SOLVER.LR_FACTORS is no list of pairs, or if one of
            its patterns matches no trained parameter
    """
    _check_factors(cfg.SOLVER.LR_FACTORS)
    optimizer = build_sgd(cfg, model)
    names = {p: name for name, p in model.named_parameters()}
    trained = [names[p] for group in optimizer.param_groups for p in group["params"]]
    matches = _match_patterns([pattern for pattern, _ in cfg.SOLVER.LR_FACTORS], trained)
    unused = set(matches)

    def factor(name: str) -> float:
        for pattern, value in cfg.SOLVER.LR_FACTORS:
            if name in matches[pattern]:
                unused.discard(pattern)
                return value
        return 1.0

    # Few large groups keep torch's fused update fast.
    groups = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            options = {**group, "lr": group["lr"] * factor(names[p])}
            del options["params"]
            groups.setdefault(tuple(options.items()), []).append(p)
    groups = [{**dict(options), "params": params} for options, params in groups.items()]
    if unused:
        raise ValueError(
            f"SOLVER.LR_FACTORS: no trained parameter has a name that matches {sorted(unused)}"
        )

    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer.param_groups = groups
        return optimizer
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        keys = ("params", "lr", "weight_decay")
        groups = [{key: group[key] for key in keys} for group in groups]
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups)
    raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER}, expected SGD or AdamW")


def _match_patterns(patterns: Iterable[str], names: list[str]) -> dict[str, set[str]]:
    """Pattern -> the names that it matches, now or as they were when an old config was written."""
    matches = {}
    for pattern in patterns:
        today = {name for name in names if re.search(pattern, name)}
        old = {name for name in names if re.search(pattern, old_name(name))} - today
        matches[pattern] = today | old
        if old:
            logging.getLogger(__name__).info(
                f"SOLVER.LR_FACTORS: {pattern!r} matches old names of parameters, such as "
                f"{old_name(min(old))}, which is {min(old)} now"
            )
    return matches


def old_name(name: str) -> str:
    """The name that a parameter had before version 0.2."""
    for new, old in _OLD_NAMES.items():
        name = re.sub(new, old, name)
    return name


def _check_factors(factors):
    try:
        valid = all(re.compile(pattern) and factor >= 0 for pattern, factor in factors)
    except (TypeError, ValueError, re.error):
        valid = False
    if not valid:
        raise ValueError(
            f"SOLVER.LR_FACTORS is {factors}, expected pairs of a regular expression and a factor"
        )
