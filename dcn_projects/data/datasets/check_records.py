"""Tell in one line what is wrong with the form of the records of a data set."""

import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral

from detectron2.data import MetadataCatalog

from .check_shapes import LARGEST, is_count

__all__ = ["check_records"]


def check_records(name: str, records, evaluated_as_coco: bool = False) -> None:
    """
    Args:
        name: of a data set
        records: what its function returned
        evaluated_as_coco: detectron2 has to write the records as a file in the format of COCO
    Raises:
        ValueError: if they are not in detectron2's standard form; one line that names the image,
            or its place among the records
    """
    if not isinstance(records, Sequence) or isinstance(records, str):
        raise ValueError(
            f"its function returns a {type(records).__name__}, expected a list of dicts, one for "
            "each image"
        )
    if not records:
        raise ValueError("it has no images")
    for i, record in enumerate(records):
        if problem := next(_problems(record), None):
            raise ValueError(f"record {_place(i, record)} {problem}")
    if evaluated_as_coco:
        _check_evaluated(name, records)


def _place(i: int, record) -> str:
    named = isinstance(record, Mapping) and record.get("file_name")
    return f"{i} ({named!s:.200})" if named else str(i)


def _problems(record) -> Iterator[str]:
    if not isinstance(record, Mapping):
        yield f"is a {type(record).__name__}, expected a dict"
        return
    path = record.get("file_name")
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        yield (f"has the file_name {path!r:.60}, expected a path" if path else "has no 'file_name'")
    if ("width" in record) != ("height" in record):
        yield "has one of 'width' and 'height', expected both or neither"
    for side in ("width", "height"):
        if not is_count(record.get(side, 1)):
            yield f"has the {side} {record[side]!r:.60}, expected 1 or more pixels"
    annotations = record.get("annotations", [])
    if not isinstance(annotations, Sequence) or isinstance(annotations, str):
        yield f"has a {type(annotations).__name__} of annotations, expected a list"
    for k, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            yield f"has a {type(annotation).__name__} as annotations[{k}], expected a dict"


def _check_evaluated(name: str, records: Sequence[Mapping]) -> None:
    if not MetadataCatalog.get(name).get("thing_classes"):
        raise ValueError("its Metadata have no thing_classes, the names of the classes")
    places = {}
    for i, record in enumerate(records):
        for key in ("image_id", "width", "height"):
            if key not in record:
                raise ValueError(
                    f"record {_place(i, record)} has no {key!r}, which the evaluation needs"
                )
        image_id = record["image_id"]
        # Others cannot be written as JSON.
        if not isinstance(image_id, (int, str)):
            raise ValueError(
                f"record {_place(i, record)} has the image_id {image_id!r:.60}, a "
                f"{type(image_id).__name__}, expected a whole number (int) or a text (str)"
            )
        if type(image_id) is not type(records[0]["image_id"]):
            raise ValueError(
                f"record {_place(i, record)} has the image_id {image_id!r:.60}, and others are "
                f"such as {records[0]['image_id']!r:.60}: give whole numbers (int), or texts "
                "(str), to all"
            )
        first = places.setdefault(image_id, i)
        if first != i:
            raise ValueError(
                f"records {_place(first, records[first])} and {_place(i, record)} have both the "
                f"image_id {image_id!r:.60}: number the images"
            )
        for k, annotation in enumerate(record.get("annotations", ())):
            if problem := _unwritable(annotation):
                raise ValueError(
                    f"record {_place(i, record)} has {problem} in annotations[{k}], which the "
                    "evaluation cannot write to a file"
                )


def _unwritable(annotation: Mapping) -> str:
    mask = annotation.get("segmentation", {})
    if not isinstance(mask, (list, dict)):
        return f"a {type(mask).__name__} as segmentation, expected a list of polygons, or RLE,"
    if isinstance(mask, list):
        for polygon in mask:
            # NumPy's float64 is a float of Python, its other numbers are none.
            if not isinstance(polygon, list) or not all(
                isinstance(x, (int, float)) for x in polygon
            ):
                kind = type(polygon).__name__
                return f"a polygon that is a {kind} and not a list of numbers of Python,"
    keypoints = annotation.get("keypoints", [])
    if not isinstance(keypoints, list) or not all(map(_is_written, keypoints)):
        return f"a {type(keypoints).__name__} as keypoints, expected a list of numbers of Python,"
    count = annotation.get("num_keypoints", 0)
    if not _is_written(count):
        return f"a {type(count).__name__} as num_keypoints, expected a number of Python,"
    crowd = annotation.get("iscrowd", 0)
    return "" if isinstance(crowd, Integral) and crowd in (0, 1) else f"the iscrowd {crowd!r:.60}"


def _is_written(number) -> bool:
    """Whether the evaluation can compute with a number, and write it."""
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return is_number and not abs(number) > LARGEST
