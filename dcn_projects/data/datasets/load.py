import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from .check_coco_json import check_coco_json
from .check_files import loading
from .check_records import check_records
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
        to_be_written = metadata.get("evaluator_type") == "coco"
        if to_be_written and metadata.get("json_file"):
            check_coco_json(os.fspath(metadata.json_file), evaluated)
            to_be_written = False
        records = DatasetCatalog.get(name)
        check_records(name, records, evaluated and to_be_written)
        return records
