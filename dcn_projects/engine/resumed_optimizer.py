from collections.abc import Sequence

import torch

from dcn_projects.solver import old_name

__all__ = ["in_own_order"]


def in_own_order(
    saved: dict, order: Sequence[str], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict:
    """
    The state of an optimizer for a model whose modules come in another order than when it was
    saved: PyTorch tells parameters apart by their number alone, and would give the momentum of one
    to another without a word.

    Args:
        saved: `state_dict()` of the optimizer
        order: names of parameters and buffers of the model that was saved, also old ones
        optimizer, model: to which it shall be loaded
    Returns:
        dict: what `optimizer.load_state_dict` takes; `saved` itself if the order is the same
    Raises:
        ValueError: if the groups of parameters, which share rate and decay, are not the same
    """
    position = {name: i for i, name in enumerate(order)}
    names = {p: name for name, p in model.named_parameters()}

    def place(p: torch.nn.Parameter) -> int:
        name = names[p]
        return position[name] if name in position else position[old_name(name)]

    groups, state = [], {}
    numbers = iter(range(sum(len(group["params"]) for group in optimizer.param_groups)))
    waiting = list(saved["param_groups"])
    try:
        for own in optimizer.param_groups:
            group = next(g for g in waiting if _same_kind(g, own))
            waiting.remove(group)
            old_number = dict(zip(sorted(own["params"], key=place), group["params"]))
            groups.append({**group, "params": []})
            for p, number in zip(own["params"], numbers):
                groups[-1]["params"].append(number)
                if old_number[p] in saved["state"]:
                    state[number] = saved["state"][old_number[p]]
    except (KeyError, StopIteration):
        raise ValueError(
            "the checkpoint is of a training with other groups of parameters. Give it as "
            "MODEL.WEIGHTS, without --resume"
        ) from None
    return {**saved, "param_groups": groups, "state": state}


def _same_kind(saved: dict, own: dict) -> bool:
    rates = saved.get("initial_lr", saved["lr"]), own.get("initial_lr", own["lr"])
    return (
        len(saved["params"]) == len(own["params"])
        and rates[0] == rates[1]
        and saved["weight_decay"] == own["weight_decay"]
    )
