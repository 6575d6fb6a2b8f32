import logging
import re
from collections.abc import Iterable, Mapping

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from dcn_projects.errors import one_line

from .origins import DETECTRON2, origin_of
from .parameter_names import differing_stages, first_names
from .read import in_form_of_detectron2, read_checkpoint
from .training_only import is_counter, training_only_entries, training_only_names
from .wrapped_names import unwrapped

__all__ = ["PlainCheckpointer", "load_to_start", "load_trained", "not_finite"]

_logger = logging.getLogger(__name__)
_GROUP_NORM = re.compile(r"_gn_[sb]$")  # in names of Caffe2
_NUM_NAMED = 3  # parameters of each kind that an error names
# Of the names in a file or in the model, how many have to be in both. Models and files without
# anything in common share a few names, such as that of a predictor.
_LEAST_PART = 0.1


class PlainCheckpointer(DetectionCheckpointer):
    """detectron2's, which reads files in such a way that nothing in them can run."""

    def _load_file(self, filename):
        return in_form_of_detectron2(read_checkpoint(filename), filename)


class _Checkpointer(PlainCheckpointer):
    def _load_model(self, checkpoint):
        own = self.model.state_dict()
        checkpoint, said = unwrapped(checkpoint, own)
        if said:
            _logger.info(said)
        weights = dict(checkpoint["model"])
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
        found = super()._load_model({**checkpoint, "model": dict(weights)})
        found.missing_keys.extend(self._invented_statistics(checkpoint, weights))
        self.check(found, weights)
        missing = set(found.missing_keys)
        loaded = {n: t for n, t in self.model.state_dict().items() if n not in missing}
        if name := not_finite(loaded):
            raise ValueError(f"it has values in {name} that are not finite")
        return found

    def _invented_statistics(self, checkpoint: Mapping, weights: Mapping) -> list[str]:
        """
        Means and variances of frozen norms that a checkpoint lacks, and that detectron2 silently
        makes 0 and 1. That is right for networks of Caffe2, whose norms have none, unless they have
        GroupNorm.
        """
        if checkpoint.get("matching_heuristics") and not any(map(_GROUP_NORM.search, weights)):
            return []
        return [
            f"{path}.{name}"
            for path, module in self.model.named_modules()
            if isinstance(module, FrozenBatchNorm2d)
            for name in ("running_mean", "running_var")
            if f"{path}.{name}" not in weights
        ]


class _WholeCheckpointer(_Checkpointer):
    def check(self, found, weights):
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
                + _advice(weights, "Give the config that it was trained with")
            )


class _StartCheckpointer(_Checkpointer):
    def check(self, found, weights):
        own = self.model.state_dict().keys() - self.training_only
        loaded = own - set(found.missing_keys)
        for stage, saved, wanted in differing_stages([*loaded, *found.unexpected_keys], own):
            raise ValueError(
                f"it is of another depth than the config: it has {saved} blocks in {stage}, and "
                f"with MODEL.RESNETS.DEPTH the model has {wanted}"
            )
        in_file = [name for name in weights if not is_counter(name)]
        if not loaded or len(loaded) < _LEAST_PART * min(len(own), len(in_file)):
            raise ValueError(self._nothing_fits(found, loaded, own, in_file))
        self.at_random = own - loaded
        left = ""
        if names := [name for name in self.model.state_dict() if name in self.at_random]:
            left = f"; {len(names)} start anew: {', '.join(first_names(names, _NUM_NAMED))}"
        _logger.info(
            f"{len(loaded)} of the {len(own)} parameters and buffers of the model are loaded{left}"
        )

    def _nothing_fits(self, found, loaded, own, in_file) -> str:
        shapes = [f"{name} {got} and not {want}" for name, got, want in found.incorrect_shapes]
        unfit = {name for name, *_ in found.incorrect_shapes}
        theirs = [name for name in in_file if name not in loaded | unfit] or in_file
        missing = own - loaded - unfit
        ours = [name for name in self.model.state_dict() if name in missing]
        lists = {
            "it has": theirs,
            "the model has": ours,
            "it has in another shape": shapes,
        }
        what = f"only {len(loaded)}" if loaded else "none"
        named = "; ".join(
            f"{begin} {', '.join(first_names(names, _NUM_NAMED))}"
            for begin, names in lists.items()
            if names
        )
        return (
            f"{what} of its {len(in_file)} arrays fit the model, which would start at random: "
            f"{named}. {_advice(in_file, 'Give weights of this model or of its backbone')}"
        )


def not_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """The name of a parameter or buffer that has a value that is not finite; "" if there is none"""
    is_wrong = (n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all())
    return next(is_wrong, "")


def _advice(in_file: Iterable[str], otherwise: str) -> str:
    origin = origin_of(in_file)
    if origin in ("", DETECTRON2):
        return otherwise
    return f"The file is of {origin}: convert it, see tools/convert_weights.py"


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


def load_to_start(model: nn.Module, path: str) -> set[str]:
    """
    Load whatever of a checkpoint fits a model that is to be trained, as detectron2 does. How much
    that is is logged in one line.

    Args:
        path: see `check_weights`; empty leaves the random values
    Returns:
        set: names of the parameters and buffers that the checkpoint does not have, and that are as
            the model was built
    Raises:
        ValueError: if it is of a ResNet of another depth, which would fit in part, or if nothing of
            it fits, or next to nothing
    """
    checkpointer = _StartCheckpointer(model)
    _load(checkpointer, path)
    if not path:
        return set(checkpointer.model.state_dict()) - training_only_names(checkpointer.model)
    return checkpointer.at_random


def _load(checkpointer: _Checkpointer, path: str) -> dict:
    try:
        return checkpointer.load(path, checkpointables=[])
    except ValueError as e:
        raise ValueError(str(e) if str(e).startswith(path) else f"{path}: {e}") from None
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as e:
        raise ValueError(f"{path} is no checkpoint of detectron2 ({one_line(e)})") from e
