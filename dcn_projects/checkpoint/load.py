import pickle
from collections.abc import Mapping

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dcn_projects.errors import one_line

from .parameter_names import differing_stages, first_names
from .training_only import training_only_entries, training_only_names

__all__ = ["load_to_start", "load_trained"]

_NUM_NAMED = 3  # parameters of each kind that an error names


class _Checkpointer(DetectionCheckpointer):
    def _load_model(self, checkpoint):
        if not isinstance(checkpoint["model"], Mapping):
            raise ValueError("it holds no parameters with names")
        weights, own = dict(checkpoint["model"]), self.model.state_dict()
        # detectron2 compares shapes by name before the modules give old names their new ones.
        for name, module in self.model.named_modules():
            if rename := getattr(module, "rename_old_parameters", None):
                rename(weights, f"{name}." if name else "")
        # What only training reads starts anew where it has another shape, such as statistics that
        # were taken in another number of processes.
        self.training_only = training_only_names(self.model)
        for name in self.training_only & weights.keys():
            if own[name].shape != weights[name].shape:
                del weights[name]
        self.left_over = training_only_entries(checkpoint)
        found = super()._load_model({**checkpoint, "model": weights})
        self.check(found)
        return found


class _WholeCheckpointer(_Checkpointer):
    def check(self, found):
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"it has values in {name} that are not finite")
        missing = [name for name in found.missing_keys if name not in self.training_only]
        unknown = [name for name in found.unexpected_keys if name not in self.left_over]
        shapes = [f"{name} {got} and not {want}" for name, got, want in found.incorrect_shapes]
        unfit = {name for name, *_ in found.incorrect_shapes}
        problems = {
            "it lacks": [name for name in missing if name not in unfit],
            "it has in another shape": shapes,
            "the model has no": unknown,
        }
        lists = [
            f"{what} {', '.join(first_names(names, _NUM_NAMED))}"
            for what, names in problems.items()
            if names
        ]
        if lists:
            raise ValueError(
                f"it is of another model than the config: {'; '.join(lists)}. "
                "Give the config that it was trained with"
            )


class _StartCheckpointer(_Checkpointer):
    def check(self, found):
        own = self.model.state_dict().keys() - self.training_only
        in_file = [*(own - set(found.missing_keys)), *found.unexpected_keys]
        for stage, saved, wanted in differing_stages(in_file, own):
            raise ValueError(
                f"it is of another depth than the config: it has {saved} blocks in {stage}, and "
                f"with MODEL.RESNETS.DEPTH the model has {wanted}"
            )


def load_trained(model: nn.Module, path: str) -> dict:
    """
    Load a checkpoint that holds exactly the parameters of a model, but for what only training
    reads. detectron2's own checkpointer warns of those that do not fit, and keeps random values.

    Args:
        path: see `check_weights`
    Returns:
        dict: the checkpoint, with what else it has
    Raises:
        ValueError: if it is of another model, or has values that are not finite; one line that
            names some of what does not fit
    """
    return _load(_WholeCheckpointer(model), path)


def load_to_start(model: nn.Module, path: str) -> None:
    """
    Load whatever of a checkpoint fits a model that is to be trained, as detectron2 does.

    Args:
        path: see `check_weights`; empty leaves the random values
    Raises:
        ValueError: if it is of a ResNet of another depth, which would fit in part
    """
    _load(_StartCheckpointer(model), path)


def _load(checkpointer: _Checkpointer, path: str) -> dict:
    try:
        return checkpointer.load(path, checkpointables=[])
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    except (pickle.UnpicklingError, AssertionError, AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is no checkpoint of detectron2 ({one_line(e)})") from e
