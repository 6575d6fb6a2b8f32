from collections.abc import Sequence

import torch

from dcn_projects.solver import old_name

__all__ = ["in_own_order"]

_OTHER_GROUPS = (
    "the checkpoint is of a training in which other parameters share a learning rate and a weight "
    "decay. Make SOLVER.LR_FACTORS, BIAS_LR_FACTOR, WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS what "
    "they were, or give it as MODEL.WEIGHTS, without --resume"
)


def in_own_order(
    saved: dict, order: Sequence[str], optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> dict:
    """
    The state of an optimizer for a model whose modules come in another order than when it was
    saved. PyTorch knows parameters by their number alone, and would silently give the momentum of
    one parameter to another.

    Args:
        saved: `state_dict()` of the optimizer
        order: names of the parameters of the model that was saved, also old ones, and perhaps of
            its buffers
        optimizer, model: to which the state shall be loaded
    Returns:
        dict: what `optimizer.load_state_dict` takes; `saved` itself if the order is the same
    Raises:
        ValueError: if not the same parameters are trained, or if those that share learning rate and
            decay are others
    """
    before, now = map(_sizes, (saved["param_groups"], optimizer.param_groups))
    if sum(before) != sum(now):
        raise ValueError(
            f"the checkpoint is of a training of {sum(before)} parameters, and the model has "
            f"{sum(now)} that are trained. Make MODEL.BACKBONE.FREEZE_AT and MODEL.RESNETS.NORM "
            "what they were, or give it as MODEL.WEIGHTS, without --resume"
        )
    position = {name: i for i, name in enumerate(order)}
    places = {
        p: position.get(name, position.get(old_name(name), -1))
        for name, p in model.named_parameters()
    }
    if list(places.values()) == sorted(places.values()):
        if before != now:
            raise ValueError(_OTHER_GROUPS)
        return saved
    groups, state, count = [], {}, 0
    waiting = list(saved["param_groups"])
    for own in optimizer.param_groups:
        kind = _kind(own, optimizer.param_groups)
        group = next((g for g in waiting if _kind(g, saved["param_groups"]) == kind), None)
        if group is None or any(places[p] < 0 for p in own["params"]):
            raise ValueError(_OTHER_GROUPS)
        waiting.remove(group)
        # Within a group the parameters are in the order of the model.
        old_number = dict(zip(sorted(own["params"], key=places.get), group["params"]))
        numbers = range(count, count + len(own["params"]))
        for p, number in zip(own["params"], numbers):
            if old_number[p] in saved["state"]:
                state[number] = saved["state"][old_number[p]]
        groups.append({**group, "params": list(numbers)})
        count += len(numbers)
    return {**saved, "param_groups": groups, "state": state}


def _sizes(groups: Sequence[dict]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _kind(group: dict, groups: Sequence[dict]) -> tuple:
    """
    What a group has in common with that of another run, whose BASE_LR and WEIGHT_DECAY may be
    others: its size, and its rate and decay as parts of the largest.
    """

    def part(key: str) -> float:
        largest = max(g.get(key, g["lr"]) for g in groups)
        return round(group.get(key, group["lr"]) / largest, 6) if largest else 0.0

    return len(group["params"]), part("initial_lr"), part("weight_decay")
