from collections.abc import Mapping

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

__all__ = ["load_trained"]

_NUM_NAMED = 3  # parameters of each kind that an error names


class _WholeCheckpointer(DetectionCheckpointer):
    def _load_model(self, checkpoint):
        if not isinstance(checkpoint["model"], Mapping):
            raise ValueError("it holds no parameters with names")
        weights, own = dict(checkpoint["model"]), self.model.state_dict()
        for name in [name for name in weights if name.endswith("dynamic.window")]:
            # That of another number of processes is no part of the model: see DynamicTraining.
            if name in own and own[name].shape != weights[name].shape:
                del weights[name]
        found = super()._load_model({**checkpoint, "model": weights})
        # FrozenBatchNorm2d has no such counter, BatchNorm2d has.
        missing, unknown = (
            [name for name in names if not name.endswith("num_batches_tracked")]
            for names in (found.missing_keys, found.unexpected_keys)
        )
        shapes = [f"{name} {got} and not {want}" for name, got, want in found.incorrect_shapes]
        unfit = {name for name, *_ in found.incorrect_shapes}
        problems = {
            "it lacks": [name for name in missing if name not in unfit],
            "it has in another shape": shapes,
            "the model has no": unknown,
        }
        lists = [_list(what, names) for what, names in problems.items() if names]
        if lists:
            raise ValueError(
                f"it is of another model than the config: {'; '.join(lists)}. "
                "Give the config that it was trained with"
            )
        return found


def _list(what: str, names: list[str]) -> str:
    more = len(names) - _NUM_NAMED
    return f"{what} {', '.join(names[:_NUM_NAMED])}" + (f" and {more} more" if more > 0 else "")


def load_trained(model: nn.Module, path: str) -> None:
    """
    Load a checkpoint that holds exactly the parameters of a model. detectron2's own checkpointer,
    which is there to start training from parts of other models, only warns of those that do not
    fit, and keeps their random values.

    Args:
        path: see `check_weights`
    Raises:
        ValueError: if it is of another model; one line that names some of what does not fit
    """
    try:
        _WholeCheckpointer(model).load(path, checkpointables=[])
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
