"""Why AP is zero or NaN on data in the COCO format."""

from collections.abc import Sequence

import numpy as np
import pycocotools.mask as run_lengths
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from .why_zero import Annotated, Detected, form_reasons, object_reasons

__all__ = ["coco_reasons", "mask_reasons"]


def coco_reasons(truth: COCO, found: COCO, source: str, low: bool) -> list[str]:
    """
    Args:
        truth, found: annotations and detections
        source: file of the annotations
        low: whether AP is
    Returns:
        list[str]: see `object_reasons`; if AP is not low, `form_reasons`
    """
    names = {i: category.get("name", str(i)) for i, category in truth.cats.items()}
    entries = truth.dataset["annotations"]
    objects = [entry for entry in entries if entry["image_id"] in truth.imgs]
    sizes = {
        i: (image["width"], image["height"])
        for i, image in truth.imgs.items()
        if image.get("width") and image.get("height")
    }
    annotated = Annotated(
        source=source,
        **_common(objects, names),
        to_find=np.array([not entry.get("iscrowd") for entry in objects], dtype=bool),
        others="crowds (iscrowd 1), which need not be found",
        sizes=sizes,
        names=list(names.values()),
    )
    if not low:
        return form_reasons(annotated)
    detections = list(found.anns.values())
    scores = np.array([entry["score"] for entry in detections], dtype=np.float64)
    reasons = object_reasons(annotated, Detected(**_common(detections, names), scores=scores))
    lost = [entry["image_id"] for entry in entries if entry["image_id"] not in truth.imgs]
    if not lost:
        return reasons
    return [
        f"{len(lost)} of {len(entries)} objects in {source} have an image_id that is the id of no "
        f"image in the file, such as {lost[0]!r}: correct them, also in their type.",
        *(reasons if objects else []),
    ]


def _common(entries: Sequence[dict], names: dict) -> dict:
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    return {
        "images": [entry["image_id"] for entry in entries],
        "classes": [names.get(entry["category_id"], "?") for entry in entries],
        "boxes": BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS),
    }


def mask_reasons(truth: COCO, boxes: COCO, masks: COCO, source: str) -> list[str]:
    """
    Args:
        truth: annotations
        boxes, masks: the same detections, evaluated by boxes and by masks
        source: file of the annotations
    Returns:
        list[str]: why masks have no AP though boxes have, in a sentence
    """
    if not any(entry["area"] for entry in masks.anns.values()):
        return [f"all {len(masks.anns)} detected masks are empty: look into MODEL.WEIGHTS."]
    objects = [e for i in truth.imgs for e in truth.imgToAnns[i] if not e.get("iscrowd")]
    outlines = {entry["id"]: truth.annToRLE(entry) for entry in objects}
    empty = sum(int(run_lengths.area(outline)) == 0 for outline in outlines.values())
    if 2 * empty > len(objects):
        return [
            f"the masks of {empty} of {len(objects)} objects in {source} have no pixel: their "
            "polygons have to be in pixels, as x, y, x, y, ..."
        ]
    overlaps = []
    for entry in objects:
        index = boxes.getAnnIds(imgIds=[entry["image_id"]], catIds=[entry["category_id"]])
        if not index:
            continue
        iou = run_lengths.iou([boxes.anns[i]["bbox"] for i in index], [entry["bbox"]], [0])
        if iou.max() >= 0.5:
            mask = masks.anns[index[int(iou.argmax())]]["segmentation"]
            overlaps.append(run_lengths.iou([mask], [outlines[entry["id"]]], [0]).item())
    right = sum(overlap >= 0.5 for overlap in overlaps)
    if 2 * right > len(overlaps):
        return []
    return [
        f"{len(overlaps)} objects are found by their boxes, and {right} of these by their masks: "
        f"the masks in {source} are not where its boxes are, or the mask head is not trained."
    ]
