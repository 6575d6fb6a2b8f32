import os
from collections.abc import Mapping
from numbers import Real

from detectron2.data import DatasetCatalog, MetadataCatalog

from .check_coco_json import check_coco_json
from .check_files import loading
from .pascal_voc import check_voc

__all__ = ["load_checked"]


def load_checked(name: str, evaluated: bool = False) -> list[dict]:
    """
    Load a data set whose files are looked at first, if they are in the format of COCO or of Pascal
    VOC: the loaders leave some mistakes out, and stumble over others.

    Args:
        name: of a registered data set
        evaluated: it is evaluated on, and not only learnt from
    Returns:
        list[dict]: detectron2's records
    Raises:
        OSError: if a file cannot be used; one line that names it and the place in it
        ValueError: if Metadata that the evaluation needs are missing
    """
    metadata = MetadataCatalog.get(name)
    check_voc(name)
    with loading([name]):
        if metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
            check_coco_json(os.fspath(metadata.json_file), evaluated)
        records = DatasetCatalog.get(name)
        if not records:
            raise ValueError("it has no images")
        for i, record in enumerate(records):
            if problem := _problem(record):
                raise ValueError(f"record {i} {problem}: {record!r:.80}")
        return records


def _problem(record) -> str:
    """What keeps a record from being looked at, in words that follow its number; or ""."""
    if not isinstance(record, Mapping):
        return "is no dictionary"
    if not isinstance(record.get("file_name"), (str, os.PathLike)):
        return "has no path of an image as 'file_name'"
    if not isinstance(record.get("annotations", ()), (list, tuple)):
        return "has no list as 'annotations'"
    sides = record.get("width", 1), record.get("height", 1)
    is_half = ("width" in record) != ("height" in record)
    if is_half or not all(isinstance(side, Real) for side in sides):
        return "has no numbers as 'width' and 'height'"
    return ""
