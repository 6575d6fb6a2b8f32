"""Tell in one line what is wrong with the objects of a data set."""

import json
import math
from collections.abc import Iterable

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .check_files import loading


def check_objects_to_learn(records: Iterable[dict], mask_format: str | None = None) -> None:
    """
    Args:
        records: detectron2's, of images to learn from
        mask_format: INPUT.MASK_FORMAT, where masks are learnt, too
    Raises:
        OSError: if an object has no box, or one that is not four finite numbers with a width and
            a height of 0 or more, or no mask of the format, naming its image; crowds need none
    """
    for record in records:
        for annotation in record.get("annotations", ()):
            if problem := _problem(annotation, mask_format):
                raise OSError(f"{record['file_name']}: in the annotations an object has {problem}")


def _problem(annotation: dict, mask_format: str | None) -> str:
    box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
    if mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) and not _is_box(box, mode):
        return f"the box {box}. Correct it, or take it out."
    if mask_format is None or annotation.get("iscrowd", 0):
        return ""
    mask = annotation.get("segmentation")
    if not mask:
        return "no mask. Take data with masks, or MODEL.MASK_ON False to learn boxes only."
    if mask_format == "polygon" and isinstance(mask, dict):
        return "a mask that is no polygon: give INPUT.MASK_FORMAT bitmask."
    return ""


def _is_box(box, mode: BoxMode) -> bool:
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        return False
    if mode == BoxMode.XYXY_ABS:
        width, height = width - x, height - y
    return all(map(math.isfinite, (x, y, width, height))) and min(width, height) >= 0


def check_objects_to_evaluate(names: Iterable[str], masks: bool = False) -> None:
    """
    Args:
        names: of registered data sets to evaluate on. Only those in the COCO format are looked at
        masks: masks are evaluated, too
    Raises:
        OSError: if annotations cannot be read, or have objects without what the evaluation reads
    """
    for name in names:
        path = MetadataCatalog.get(name).get("json_file")
        if not path:
            continue
        with loading([name]):
            with PathManager.open(path) as f:
                objects = dict(json.load(f)).get("annotations", ())
            for entry in objects:
                missing = [key for key in ("bbox", "area", "iscrowd", "id") if key not in entry]
                if missing:
                    raise ValueError(f"{path} has an object without {missing[0]}: {str(entry):.80}")
                if not _is_box(entry["bbox"], BoxMode.XYWH_ABS):
                    raise ValueError(f"{path} has an object with the box {entry['bbox']}")
                if masks and not entry.get("segmentation"):
                    raise ValueError(
                        f"{path} has objects without masks. Take data with masks, or MODEL.MASK_ON "
                        "False to evaluate boxes only."
                    )
