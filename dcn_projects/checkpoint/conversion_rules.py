import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .parameter_names import differing_stages, first_names
from .training_only import is_counter

__all__ = [
    "Rule",
    "apply_rules",
    "background_last",
    "counters",
    "expected_parameters",
    "foreground_boxes",
    "rename_resnet_layer",
    "reorder_anchors",
    "resnet_prefixes",
]

_NUM_NAMED = 5  # arrays of each kind that an error names


class Rule(NamedTuple):
    """How an array becomes a parameter. Only their numbers of rows (axis 0) can differ."""

    target: str
    convert: Callable[[np.ndarray], np.ndarray] = np.asarray
    source_rows: Callable[[int], int] = int  # from the rows of the parameter


def background_last(array: np.ndarray, block: int = 1) -> np.ndarray:
    """Class 0 is the background in the originals, class K here. A class has `block` rows."""
    return np.roll(array, -block, axis=0)


def foreground_boxes(array: np.ndarray, block: int = 1) -> np.ndarray:
    """Of the boxes, of 4 * `block` rows, the first is the background's, and unused."""
    return array[4 * block :]


def reorder_anchors(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Rows of an RPN's layer, one or four per anchor: new anchor i is old anchor order[i]."""
    return array.reshape(len(order), -1, *array.shape[1:])[list(order)].reshape(array.shape)


def resnet_prefixes(names: Iterable[str]) -> tuple[str, str]:
    """Where a model of these parameters keeps its ResNet, and where res5 of it."""
    names = list(names)
    is_fpn = any(name.startswith("backbone.bottom_up.") for name in names)
    backbone = "backbone.bottom_up." if is_fpn else "backbone."
    is_c4 = any(name.startswith("roi_heads.res5.") for name in names)
    return backbone, "roi_heads." if is_c4 else backbone


_OF_BLOCK = {
    **{f"conv{i}": f"conv{i}" for i in (1, 2, 3)},
    **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
    "conv2.conv_offset": "conv2.conv_offset",
    "conv2_offset": "conv2.conv_offset",
}


def rename_resnet_layer(layer: str) -> str:
    """
    Args:
        layer: of a ResNet of torchvision, or of mmdetection, whose deformable convolutions have a
            layer for their offsets: conv1, bn1, layer1.0.conv1, ...
    Returns:
        str: the name in detectron2's ResNet, or '' if it is none of them
    """
    if layer in ("conv1", "bn1"):
        return f"stem.{_OF_BLOCK[layer]}"
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", layer)
    if match is None or match[3] not in _OF_BLOCK:
        return ""
    return f"res{int(match[1]) + 1}.{match[2]}.{_OF_BLOCK[match[3]]}"


def counters(arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[np.ndarray], bool]]:
    """What `apply_rules` leaves out: how many batches each BatchNorm of PyTorch has seen."""
    return {name: lambda array: array.ndim == 0 for name in arrays if is_counter(name)}


def expected_parameters(
    shapes: Iterable[str], training_only: Collection[str] = (), resnet_only: bool = False
) -> list[str]:
    """
    What a source must have: all but counters of batches, and what only training reads.

    Args:
        shapes: names of all parameters and buffers of the model
        training_only: those of them that only training reads
        resnet_only: of its ResNet alone, which has no offsets, as an ImageNet classifier
    """
    names = [name for name in shapes if not is_counter(name) and name not in training_only]
    if not resnet_only:
        return names
    backbone, res5 = map(re.escape, resnet_prefixes(names))
    resnet = re.compile(rf"({backbone}(stem|res\d)|{res5}res5)\.(?!.*_offset)")
    return [name for name in names if resnet.match(name)]


def apply_rules(
    what: str,
    arrays: Mapping[str, np.ndarray],
    find_rule: Callable[[str], Rule | None],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Iterable[str],
    left_out: Mapping[str, Callable[[np.ndarray], bool]],
    unfit: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """
    Turn every array into the parameter of its rule, or none at all.

    Args:
        what: the source in words, with an article
        arrays: name -> array
        find_rule: of a name; None for names without a meaning
        shapes: name -> shape of every parameter and buffer of the model
        expected: parameters that the source must have
        left_out: name -> check, of arrays that no model has a parameter for
        unfit: what is known to be wrong already
    Returns:
        dict: name -> array, float32
    Raises:
        ValueError: if there are arrays that the model has no place for, or that do not have the
            shape, type or values that they should have, or parameters without an array; it names
            some of each, and stages of the ResNet with another number of blocks
    """
    found, unknown, unfit, targets = {}, [], list(unfit), []
    for name, array in arrays.items():
        if name in left_out:
            if not left_out[name](array):
                unfit.append(f"{name} {array.shape} is not that of {what}")
            continue
        rule = find_rule(name)
        targets += [rule.target] if rule else []
        if rule is None or rule.target not in shapes:
            unknown.append(name + (f" (as {rule.target})" if rule else ""))
        elif rule.target in found:
            unfit.append(f"{name} is {rule.target}, as another array is")
        else:
            rows, *rest = shapes[rule.target]
            shape = (rule.source_rows(rows), *rest)
            if array.shape != shape or array.dtype.kind != "f":
                unfit.append(f"{name} is {array.dtype} {array.shape}, expected float {shape}")
            elif not np.isfinite(array).all():
                unfit.append(f"{name} has values that are not finite")
            found[rule.target] = rule, array
    problems = {
        "the model has no parameter for": unknown,
        "these arrays are not what they should be": unfit,
        "the file has no array for": [name for name in expected if name not in found],
    }
    lists = [
        "\n    ".join([problem, *first_names(names, _NUM_NAMED)])
        for problem, names in problems.items()
        if names
    ]
    if lists:
        blocks = [
            f"{stage} has {in_file} blocks in the file and {in_model} in the config: "
            "MODEL.RESNETS.DEPTH"
            for stage, in_file, in_model in differing_stages(targets, shapes)
        ]
        raise ValueError("\n".join([f"{what} that does not fit the model", *blocks, *lists]))
    params = {name: rule.convert(array) for name, (rule, array) in found.items()}
    return {name: np.array(array, np.float32) for name, array in params.items()}
