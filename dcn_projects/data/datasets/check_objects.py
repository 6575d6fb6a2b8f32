"""Tell in one line what is wrong with the objects of a data set."""

from collections.abc import Iterable
from math import inf

from .check_shapes import box_problem, keypoint_problem, mask_problem

__all__ = ["check_objects"]

_NEEDED = ("bbox", "bbox_mode", "category_id")


def check_objects(
    name: str,
    records: Iterable[dict],
    num_classes: int | None = None,
    masks: str | None = None,
    num_keypoints: int | None = None,
) -> None:
    """
    Args:
        name: of the data set
        records: detectron2's, of the images of a data set
        num_classes: K, of the model; None where it tells none apart
        masks: "polygon" or "bitmask", INPUT.MASK_FORMAT, where masks are learnt; "any" where they
            are evaluated; None without masks
        num_keypoints: of an object, where they are learnt; None without
    Raises:
        OSError: naming the image, if an object has no box, or one that cannot be used, a class that
            the model does not have, or not the mask or the keypoints that are asked for. Crowds
            need no mask
    """
    for record in records:
        for annotation in record.get("annotations", ()):
            size = record.get("width", inf), record.get("height", inf)
            problem = _problem(annotation, size, num_classes, masks, num_keypoints)
            if problem:
                raise OSError(
                    f"{record['file_name']}: in the annotations of data set {name} an object has "
                    f"{problem}"
                )


def _problem(annotation: dict, size, num_classes, masks, num_keypoints) -> str:
    for key in _NEEDED:
        if key not in annotation:
            return f"no {key!r}"
    if problem := box_problem(annotation["bbox"], annotation["bbox_mode"], *size):
        return f"{problem}. Correct it, or take it out"
    category = annotation["category_id"]
    if num_classes is not None and category not in range(num_classes):
        return f"the category_id {category!r}, expected 0 to {num_classes - 1}"
    is_crowd = annotation.get("iscrowd", 0)
    mask = annotation.get("segmentation")
    has_mask = mask is not None and len(mask) > 0
    if masks and not is_crowd and not has_mask:
        return "no mask. Take data with masks, or MODEL.MASK_ON False for boxes only"
    if masks == "polygon" and not is_crowd and isinstance(mask, dict):
        return "a mask that is no polygon: give INPUT.MASK_FORMAT bitmask"
    if masks and has_mask and (problem := mask_problem(mask, *size)):
        return f"{problem}. Correct it, or take it out"
    if num_keypoints is not None and not is_crowd:
        keypoints = annotation.get("keypoints")
        if keypoints is None or len(keypoints) == 0:
            return "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False"
        if problem := keypoint_problem(keypoints, num_keypoints, *size):
            return f"{problem}. Correct it, or take it out"
    return ""
