"""Why the AP of a data set is zero or NaN: the usual reasons, each of which is tested."""

import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

__all__ = [
    "Annotated",
    "Detected",
    "form_reasons",
    "is_low",
    "object_reasons",
    "tell_nothing",
    "tell_reasons",
    "tell_unknown",
]

LOW = 1.0  # percent: results below it are those of chance
UNSURE = 0.05  # score
OVERLAP = 0.5  # IoU
MANY = 0.2  # share of the boxes
THRESHOLDS = (
    "the threshold of scores (MODEL.ROI_HEADS.SCORE_THRESH_TEST, of RetinaNet "
    "MODEL.RETINANET.SCORE_THRESH_TEST)"
)


@dataclass
class Detected:
    """
    Attributes:
        images: (N,) id of the image of each detection
        classes: (N,) names
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image
        scores: (N,)
    """

    images: Sequence
    classes: Sequence[str]
    boxes: np.ndarray
    scores: np.ndarray


@dataclass
class Annotated:
    """
    Attributes:
        source: file or folder of the annotations
        images, classes, boxes: of N objects, as in Detected
        to_find: (N,) whether the object counts, bool
        others: what those are that do not count, in words
        sizes: id of an image -> width, height
        names: of the classes that are evaluated
        corners: whether the file has x0, y0, x1, y1, and not x, y, width, height
    """

    source: str
    images: Sequence
    classes: Sequence[str]
    boxes: np.ndarray
    to_find: np.ndarray
    others: str
    sizes: dict
    names: Sequence[str]
    corners: bool = False


def is_low(result: float) -> bool:
    """Whether a result, in percent, is zero, or nearly, or NaN."""
    return math.isnan(result) or result < LOW


def tell_nothing(name: str) -> None:
    logging.getLogger(__name__).warning(
        f"Nothing was detected on {name}: its results are 0, and NaN where there is no object to "
        f"be found. Lower {THRESHOLDS}, or look into MODEL.WEIGHTS."
    )


def tell_unknown(images: Sequence, source: str | os.PathLike) -> None:
    """Of images that were evaluated, and are not in the file that says which there are."""
    if os.fspath(source).endswith("_coco_format.json"):
        advice = "detectron2 made this file when the data set was another one: delete it."
    else:
        advice = "register the data set with its own file, whose ids have the same type."
    logging.getLogger(__name__).warning(
        f"{len(images)} images are not in {source}, such as {images[0]!r}, and what was detected "
        f"on them is left out: {advice}"
    )


def tell_reasons(metric: str, result: float, name: str, reasons: Sequence[str]) -> None:
    """A warning for each reason why a metric of a data set has this result."""
    for reason in reasons:
        logging.getLogger(__name__).warning(f"{metric} is {result:.3g} on {name}: {reason}")


def object_reasons(annotated: Annotated, detected: Detected) -> list[str]:
    """
    Returns:
        list[str]: a sentence for each reason that is true; of a data set with objects and
        detections at least one, if need be that they do not overlap
    """
    reasons = [*_no_objects(annotated), *(form_reasons(annotated) or _sizes(annotated))]
    objects = annotated.to_find.sum()
    if objects and len(detected.boxes):
        pairs = _surest_pairs(annotated, detected)
        reasons += [*_other_classes(annotated, pairs), *_scores(annotated, detected)]
        if not reasons:
            reasons.append(
                f"the surest detections overlap {len(pairs)} of {objects} objects by half: look "
                "at them with train_net.py --predict, and into MODEL.WEIGHTS."
            )
    return reasons


def _no_objects(annotated: Annotated) -> Iterator[str]:
    number, names = len(annotated.boxes), set(annotated.names)
    unnamed = [name for name in annotated.classes if name not in names]
    if number == 0:
        yield f"{annotated.source} has no objects in the images of the data set."
    elif number > len(unnamed) and not annotated.to_find.any():
        yield (
            f"all {number - len(unnamed)} objects of its classes in {annotated.source} are "
            f"{annotated.others}."
        )
    if len(unnamed) > number / 2:
        examples = ", ".join(name for name, _ in Counter(unnamed).most_common(3))
        yield (
            f"{len(unnamed)} of {number} objects in {annotated.source} are of classes that the "
            f"data set does not name, such as {examples}: compare them with its thing_classes."
        )


def form_reasons(annotated: Annotated) -> list[str]:
    """
    Returns:
        list[str]: a sentence, if boxes are written in another form than the one they have to have
    """
    boxes, sizes = _with_sizes(annotated)
    if not len(boxes):
        return []
    numbers = boxes if annotated.corners else _lengths(boxes)
    if np.abs(numbers).max() <= 1 and sizes.min() > 2:
        return [
            f"the boxes in {annotated.source} are between 0 and 1, but have to be in pixels: "
            "multiply them by the width and the height of the image."
        ]
    wrong = _wrong(boxes, sizes)
    other = _ends(numbers) if annotated.corners else numbers
    if wrong.mean() <= MANY or _wrong(other, sizes).any():
        return []
    forms = ["[x, y, width, height]", "[x0, y0, x1, y1]"]
    right, mistaken = forms[::-1] if annotated.corners else forms
    return [
        f"{wrong.sum()} of {len(boxes)} boxes in {annotated.source} leave the image or have no "
        f"size when they are read as {right}, as they have to be, and none when read as "
        f"{mistaken}: write them as {right}."
    ]


def _sizes(annotated: Annotated) -> Iterator[str]:
    boxes, sizes = _with_sizes(annotated)
    wrong = _wrong(boxes, sizes)
    if len(boxes) and wrong.mean() > MANY:
        i = int(wrong.argmax())
        width, height = sizes[i].astype(int)
        example = ", ".join(f"{x:g}" for x in (boxes if annotated.corners else _lengths(boxes))[i])
        yield (
            f"{wrong.sum()} of {len(boxes)} boxes in {annotated.source} leave the image or have no "
            f"size, such as [{example}] in an image of {width} x {height}: they may be for images "
            "of another size."
        )
    elif len(boxes) >= 10 and (boxes[:, 2:] <= sizes / 2).all():
        yield (
            f"all {len(boxes)} boxes in {annotated.source} are in the upper left quarter of the "
            "image: they may be for images of another size."
        )


def _with_sizes(annotated: Annotated) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, and width and height of their images, where these are known; (N, 4) and (N, 2)."""
    known = [i for i, image in enumerate(annotated.images) if image in annotated.sizes]
    sizes = [annotated.sizes[annotated.images[i]] for i in known]
    return annotated.boxes[known], np.array(sizes, dtype=np.float64).reshape(-1, 2)


def _lengths(boxes: np.ndarray) -> np.ndarray:
    """x0, y0, x1, y1 -> x0, y0, width, height"""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


def _ends(boxes: np.ndarray) -> np.ndarray:
    """x0, y0, width, height -> x0, y0, x1, y1"""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _wrong(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes leave the image by more than the pixel of rounding, or have no size; (N,)."""
    outside = (boxes[:, :2] < -1.5) | (boxes[:, 2:] > sizes + 1.5)
    return (outside | (boxes[:, 2:] <= boxes[:, :2])).any(axis=1)


def _surest_pairs(annotated: Annotated, detected: Detected) -> list[tuple[str, str]]:
    """
    Of as many detections as there are objects, those with the highest scores: for each object that
    they overlap, the class of the surest one, and its own.
    """
    objects, by_image = np.flatnonzero(annotated.to_find), defaultdict(list)
    for i in np.argsort(-detected.scores, kind="stable")[: len(objects)]:
        by_image[detected.images[i]].append(i)
    of_image = defaultdict(list)
    for j in objects:
        if annotated.images[j] in by_image:
            of_image[annotated.images[j]].append(j)
    pairs = []
    for image, index in of_image.items():
        found = by_image[image]
        overlaps = _overlaps(detected.boxes[found], annotated.boxes[index])
        for j, column in zip(index, overlaps.T):
            if column.any():
                pairs.append((detected.classes[found[column.argmax()]], annotated.classes[j]))
    return pairs


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, 4) and (N, 4) -> (M, N), bool"""
    a, b = (Boxes(torch.as_tensor(x, dtype=torch.float32)) for x in (a, b))
    return (pairwise_iou(a, b) >= OVERLAP).numpy()


def _other_classes(annotated: Annotated, pairs: list[tuple[str, str]]) -> Iterator[str]:
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    objects = annotated.to_find.sum()
    if len(pairs) >= 0.3 * objects and 2 * wrong.total() > len(pairs):
        (found, truth), times = wrong.most_common(1)[0]
        yield (
            f"the surest detections overlap {len(pairs)} of {objects} objects by half, but "
            f"{wrong.total()} of them with another class, most often ({times} times) detected as "
            f"{found}, annotated as {truth}: the classes of the data set and of the model are in "
            "another order, or MODEL.WEIGHTS are of other classes."
        )


def _scores(annotated: Annotated, detected: Detected) -> Iterator[str]:
    highest = detected.scores.max()
    if highest < UNSURE:
        yield (
            f"all scores are below {UNSURE}, the highest is {highest:.2g}: the model is not "
            "trained, or not for these images; look into MODEL.WEIGHTS."
        )
    number, objects = len(detected.boxes), annotated.to_find.sum()
    if number < 0.1 * objects:
        yield (
            f"there are {number} detections for {objects} objects: lower {THRESHOLDS}, or look "
            "into MODEL.WEIGHTS."
        )
