"""Objects in the layout of Pascal VOC: an XML file for each image."""

import logging
import os
from collections.abc import Sequence
from xml.etree.ElementTree import ParseError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import pascal_voc as detectron2_pascal_voc
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..images import image_size
from .voc_files import VocFiles
from .voc_xml import VocAnnotation, VocObject, read_voc_xml

YEARS = (2007, 2012)  # of the two metrics


def register_pascal_voc(
    name: str,
    class_names: Sequence[str],
    dirname: str | os.PathLike,
    split: str | None = None,
    year: int = 2012,
    *,
    difficult: bool = True,
) -> None:
    """
    Register a data set in the layout of Pascal VOC, or in one that is like it: see `VocFiles.find`.

    Args:
        name: of the data set
        class_names: in the order of their numbers
        dirname: folder with pictures, XML files and lists
        split: list in ImageSets/Main, or beside the folders, without ".txt"; None where there is
            none: then the images are those that have an XML file
        year: of the metric, 2007 or 2012
        difficult: whether objects that are marked as difficult are loaded. Evaluation never
            requires them
    Raises:
        ValueError: for a year or class names that cannot be used
    """
    is_list = isinstance(class_names, (list, tuple)) and {*map(type, class_names)} == {str}
    if not is_list or len(set(class_names)) < len(class_names):
        raise ValueError(
            f"register_pascal_voc: the class names of {name} are {class_names!r}, expected a list "
            "of different names as the second argument"
        )
    if year not in YEARS:
        raise ValueError(
            f"register_pascal_voc: the year of {name} is {year!r}, expected 2007 or 2012"
        )
    dirname, split = os.fspath(dirname), split or ""
    DatasetCatalog.register(name, lambda: load_voc(dirname, split, class_names, difficult))
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names),
        dirname=dirname,
        split=split,
        year=year,
        evaluator_type="pascal_voc",
    )


def load_voc(
    dirname: str, split: str, class_names: Sequence[str], difficult: bool = True
) -> list[dict]:
    """
    The records of detectron2's `load_voc_instances`. An image without objects has one, too:
    DATALOADER.FILTER_EMPTY_ANNOTATIONS drops it in training.

    Args:
        dirname, split: see `VocFiles.find`
        class_names: in the order of their numbers
        difficult: whether objects that are marked as difficult are among the annotations. Without
            them the data are those on which the original R-FCN trains
    Raises:
        OSError: if a file is missing, cannot be read, or contradicts itself or its picture; one
            line that begins with the file
    """
    files = VocFiles.find(dirname, split)
    image_ids = files.image_ids()
    records, reach_out = [], []
    for image_id in image_ids:
        path = files.xml(image_id)
        annotation = read_voc_xml(path, class_names)
        picture = files.picture(image_id, annotation.file_name)
        width, height = _checked_size(path, annotation, picture)
        reach_out += [path for o in annotation.objects if _reaches_out(path, o, width, height)]
        objects = [o for o in annotation.objects if difficult or not o.difficult]
        records.append(
            {
                "file_name": picture,
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": [_to_record(o, class_names) for o in objects],
            }
        )
    if reach_out:
        _warn(
            f"{reach_out[0]}: a box reaches out of its picture, in which Pascal VOC counts the "
            f"pixels from 1. Boxes of {dirname} that do so: {len(reach_out)}"
        )
    if not files.image_list and (unused := files.pictures_without_xml(image_ids)):
        _warn(
            f"{files.pictures}: pictures without an XML file are not used, such as {unused[0]}. "
            f"There are {len(unused)}"
        )
    return records


def read_voc_objects(
    dirname: str, split: str, class_names: Sequence[str]
) -> dict[str, list[VocObject]]:
    """
    What an evaluation reads: the objects of every image, without a look at the pictures.

    Args:
        as of `load_voc`
    Raises:
        OSError: if a file is missing, cannot be read or contradicts itself
    """
    files = VocFiles.find(dirname, split)
    return {
        image_id: read_voc_xml(files.xml(image_id), class_names).objects
        for image_id in files.image_ids()
    }


def check_voc(name: str) -> None:
    """
    Find out what the loader of a data set in the layout of Pascal VOC does not say itself. That of
    `register_pascal_voc` says all; that of detectron2 names no file in its errors.

    Args:
        name: of a registered data set; one that is neither registered with detectron2's
            `register_pascal_voc` nor evaluated in this layout is not looked at
    Raises:
        OSError: as of `load_voc`, or if detectron2's loader does not understand files that are
            legal
        ValueError: if the evaluator lacks Metadata, or there is no metric of the year
    """
    meta, module = MetadataCatalog.get(name), _module_of_loader(name)
    evaluated = meta.get("evaluator_type") == "pascal_voc"
    if evaluated:
        _check_metadata(name, meta)
    if module == detectron2_pascal_voc.__name__:
        records = load_voc(meta.dirname, meta.split, meta.thing_classes)
        if _files_of(name) != [record["file_name"] for record in records]:
            raise OSError(
                f"data set {name}: it is registered with detectron2's register_pascal_voc, which "
                "does not understand its lists or files. Register it with "
                "dcn_projects.data.register_pascal_voc, which does"
            )
    elif evaluated and module != __name__:
        read_voc_objects(meta.dirname, meta.split, meta.thing_classes)


def _module_of_loader(name: str) -> str:
    return getattr(DatasetCatalog.data.get(name), "__module__", "")


def _check_metadata(name: str, meta) -> None:
    for key in ("dirname", "split", "thing_classes", "year"):
        if meta.get(key) is None:
            raise ValueError(f"data set {name}: its Metadata has no {key} for its evaluator")
    if meta.year not in YEARS:
        raise ValueError(f"data set {name}: its year is {meta.year!r}, expected 2007 or 2012")


def _files_of(name: str) -> list[str] | None:
    """Pictures of a data set that detectron2 loads; None where it cannot."""
    try:
        return [record["file_name"] for record in DatasetCatalog.get(name)]
    except (AttributeError, LookupError, OSError, ParseError, TypeError, ValueError):
        return None


def _checked_size(path: str, annotation: VocAnnotation, picture: str) -> tuple[int, int]:
    width, height = size = image_size(picture)
    if not all(map(_is_number, annotation.size, size)):
        found = " x ".join(annotation.size) if all(annotation.size) else "missing"
        raise OSError(
            f"{path}: the width and height in <size> are {found}, but {picture} has {width} x "
            f"{height} pixels. Correct the size, or copy the right picture"
        )
    return size


def _is_number(text: str, number: int) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def _to_record(found: VocObject, class_names: Sequence[str]) -> dict:
    """Its corners lie between pixels, as detectron2's: those of the first pixel are 0 and 1."""
    x0, y0, x1, y1 = found.box
    return {
        "category_id": class_names.index(found.name),
        "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def _reaches_out(path: str, found: VocObject, width: int, height: int) -> bool:
    """Whether a part of a box, and then not all of it, is outside of the picture."""
    x0, y0, x1, y1 = found.box
    if x1 < 1 or y1 < 1 or x0 > width or y0 > height:
        raise OSError(
            f"{path}: an object of the class {found.name!r} has the box ({x0:g}, {y0:g}, {x1:g}, "
            f"{y1:g}), which is outside of the picture of {width} x {height} pixels. Correct it, "
            "or take the object out"
        )
    return min(x0, y0) < 1 or x1 > width or y1 > height


def _warn(message: str) -> None:
    # Once, although data are read to be checked and to be used.
    log_first_n(logging.WARNING, message, name=__name__, key="message")
