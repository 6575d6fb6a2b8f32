"""Tell in one line what is wrong with the objects of a data set."""

import logging
from collections.abc import Iterable
from math import inf
from numbers import Real

import numpy as np
from detectron2.structures import BoxMode

from .check_shapes import box_problem, is_empty_mask, keypoint_problem, mask_problem

__all__ = ["check_objects"]

_SMALLEST = 8  # pixels of an image in which a box within the first pixel is meant otherwise
_NEEDED = ("bbox", "bbox_mode", "category_id")


def check_objects(
    name: str,
    records: Iterable[dict],
    num_classes: int | None = None,
    masks: str | None = None,
    num_keypoints: int | None = None,
    evaluated: bool = False,
) -> None:
    """
    Warns of boxes without an area in their image and of masks without pixels, which are neither
    learnt nor found, and of boxes that reach out of the image.

    Args:
        name: of the data set
        records: detectron2's, of the images of a data set
        num_classes: K, of the model; None where it tells none apart
        masks: "polygon" or "bitmask", INPUT.MASK_FORMAT, where masks are learnt; "any" where they
            are evaluated; None without masks
        num_keypoints: of an object, where the model finds them; None without
        evaluated: the objects are evaluated, and not learnt
    Raises:
        OSError: naming the image, if an object has no box, or one that cannot be used, a class that
            the model does not have, or not the mask or the keypoints that are asked for, which
            crowds need only where they are evaluated; or if all boxes are between 0 and 1
    """
    for record in records:
        if "annotations" not in record and not evaluated:
            raise OSError(
                f"{record['file_name']}: data set {name} has no 'annotations' of it. Where an "
                "image has no objects they are an empty list"
            )
        size = record.get("width", inf), record.get("height", inf)
        for annotation in record.get("annotations", ()):
            problem = _problem(annotation, size, num_classes, masks, num_keypoints, evaluated)
            if problem:
                raise OSError(
                    f"{record['file_name']}: in the annotations of data set {name} an object has "
                    f"{problem}"
                )
    _check_together(name, records)
    if masks:
        _tell_empty_masks(name, records)


def _tell_empty_masks(name: str, records: Iterable[dict]) -> None:
    empty = [
        record["file_name"]
        for record in records
        for annotation in record.get("annotations", ())
        if (mask := annotation.get("segmentation")) and is_empty_mask(mask)
    ]
    if empty:
        logging.getLogger(__name__).warning(
            f"data set {name}: {len(empty)} masks have no pixel: such objects are not learnt, and "
            f"cannot be found. The first is in {empty[0]}"
        )


def _check_together(name: str, records: Iterable[dict]) -> None:
    """What the boxes of a data set tell of its form, and what is odd in some of them."""
    modes = {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}
    entries = [
        (record, annotation)
        for record in records
        for annotation in record.get("annotations", ())
        if annotation["bbox_mode"] in modes
    ]
    if not entries:
        return
    numbers = np.array([annotation["bbox"] for _, annotation in entries], dtype=float)
    sizes = np.array([(r.get("width", inf), r.get("height", inf)) for r, _ in entries], dtype=float)
    if numbers.max() <= 1 and (numbers % 1).any() and sizes[sizes < inf].max(initial=0) > _SMALLEST:
        raise OSError(
            f"data set {name}: the numbers of all {len(numbers)} boxes are between 0 and 1, "
            "expected pixels: multiply them by the width and the height of their images"
        )
    are_lengths = np.array([a["bbox_mode"] == BoxMode.XYWH_ABS for _, a in entries])[:, None]
    ends = numbers[:, 2:] + are_lengths * numbers[:, :2]
    no_area = (np.minimum(ends, sizes) <= np.maximum(numbers[:, :2], 0)).any(axis=1)
    outside = ((numbers[:, :2] < -1) | (ends > sizes + 1)).any(axis=1) & ~no_area
    form = "[x, y, width, height]" if are_lengths.all() else "[x0, y0, x1, y1]"
    for some, what in (
        (no_area, "have no area in their images: such objects are not learnt, and cannot be found"),
        (outside, f"reach out of their images by more than a pixel, read as {form}"),
    ):
        if some.any():
            record, annotation = entries[int(some.argmax())]
            logging.getLogger(__name__).warning(
                f"data set {name}: {some.sum()} of {len(numbers)} boxes {what}. The first is "
                f"{list(annotation['bbox'])} in {record['file_name']}"
            )


def _problem(annotation: dict, size, num_classes, masks, num_keypoints, evaluated) -> str:
    for key in _NEEDED:
        if key not in annotation:
            return f"no {key!r}"
    if problem := box_problem(annotation["bbox"], annotation["bbox_mode"], *size):
        return f"{problem}. Correct it, or take it out"
    if evaluated and annotation["bbox_mode"] == BoxMode.XYWHA_ABS:
        return "a rotated box (BoxMode.XYWHA_ABS), which the evaluators of this package do not read"
    category = annotation["category_id"]
    if not isinstance(category, Real):
        return f"the category_id {category!r:.40}, expected a whole number from 0 on"
    if num_classes is not None and category not in range(num_classes):
        return f"the category_id {category!r:.40}, expected 0 to {num_classes - 1}"
    is_crowd = annotation.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        return f"the iscrowd {is_crowd!r:.40}, expected 0 or 1"
    mask = annotation.get("segmentation")
    has_mask = mask is not None and len(mask) > 0
    if masks and is_crowd and evaluated and not has_mask:
        return "no mask. Give it one, though it is a crowd, or take it out: the evaluation reads it"
    if masks and not is_crowd and not has_mask:
        return "no mask. Take data with masks, or MODEL.MASK_ON False for boxes only"
    if masks == "polygon" and not is_crowd and isinstance(mask, dict):
        return "a mask that is no polygon: give INPUT.MASK_FORMAT bitmask"
    if masks and has_mask and (problem := mask_problem(mask, *size)):
        return f"{problem}. Correct it, or take it out"
    is_read = masks and (evaluated or not is_crowd)
    if is_read and isinstance(mask, dict) and not isinstance(mask["counts"], (str, bytes)):
        return (
            "RLE with a list of counts, which detectron2 cannot read: give "
            "pycocotools.mask.frPyObjects(mask, height, width)"
        )
    if num_keypoints is not None and (evaluated or not is_crowd):
        keypoints = annotation.get("keypoints")
        if keypoints is None or len(keypoints) == 0:
            return "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False"
        if problem := keypoint_problem(keypoints, num_keypoints, *size):
            return f"{problem}. Correct it, or take it out"
    return ""
