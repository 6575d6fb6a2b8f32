"""The XML file with the objects of one image, as in Annotations of Pascal VOC."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.utils.file_io import PathManager

from dcn_projects.errors import one_line

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DIFFICULT = {"": False, "unspecified": False, "0": False, "false": False, "1": True, "true": True}


class VocObject(NamedTuple):
    """
    Attributes:
        name: of its class
        difficult: whether it need not be found
        box: xmin, ymin, xmax, ymax as in the file: pixels counted from 1, both corners inside
    """

    name: str
    difficult: bool
    box: list[float]


class VocAnnotation(NamedTuple):
    """
    Attributes:
        file_name: of the picture, as the file has it, or ""
        size: width and height as the file has them, or "" for each
        objects: all of them
    """

    file_name: str
    size: tuple[str, str]
    objects: list[VocObject]


def read_voc_xml(path: str, class_names: Sequence[str]) -> VocAnnotation:
    """
    Args:
        path: file, in the encoding that it declares
        class_names: that objects can have
    Raises:
        OSError: if the file cannot be read or is no annotation, or an object has no class or an
            unknown one, or not one box of four finite numbers, or its corners are swapped; one line
            that begins with the path
    """
    root = _parse(path)
    if root.tag != "annotation":
        raise OSError(
            f"{path}: it is no annotation of Pascal VOC, as it begins with "
            f"<{root.tag:.60}> instead of <annotation>. Move it elsewhere"
        )
    elements = root.findall("object")
    if len(elements) < len(list(root.iter("object"))):
        raise OSError(
            f"{path}: it has objects inside of other elements. Put them directly into <annotation>"
        )
    return VocAnnotation(
        _text(root, "filename"),
        (_text(root, "size/width"), _text(root, "size/height")),
        [_object(path, element, class_names) for element in elements],
    )


def _parse(path: str) -> ET.Element:
    # In binary, so that the parser follows the encoding that the file declares.
    with PathManager.open(path, "rb") as f:
        try:
            return ET.parse(f).getroot()
        except (ET.ParseError, LookupError, ValueError) as e:  # the latter for unknown encodings
            raise OSError(
                f"{path}: it cannot be read as XML ({one_line(e):.200}). Copy it again, or save it "
                "in UTF-8"
            ) from e


def _text(element: ET.Element, tag: str) -> str:
    return element.findtext(tag, "").strip()


def _object(path: str, element: ET.Element, class_names: Sequence[str]) -> VocObject:
    name = _text(element, "name")
    if not name:
        raise OSError(f"{path}: an object has no name. Write the name of its class")
    if name not in class_names:
        raise OSError(
            f"{path}: an object is of the class {name!r:.60}, which is none of the data set's "
            f"({', '.join(class_names)}). Correct it, or add the class where the data set is "
            "registered"
        )
    difficult = _text(element, "difficult")
    if difficult.lower() not in _DIFFICULT:
        raise OSError(
            f"{path}: an object of the class {name!r} has {difficult!r:.60} as difficult, expected "
            "0 or 1. Correct it"
        )
    return VocObject(name, _DIFFICULT[difficult.lower()], _box(path, element, name))


def _box(path: str, element: ET.Element, name: str) -> list[float]:
    boxes = len(element.findall("bndbox"))
    if boxes != 1:
        raise OSError(
            f"{path}: an object of the class {name!r} has {boxes or 'no'} bndbox, expected one. "
            "Correct it, or take the object out"
        )
    texts = [_text(element, f"bndbox/{corner}") for corner in _CORNERS]
    box = [_number(text) for text in texts]
    x0, y0, x1, y1 = box
    problem = ""
    if not all(map(math.isfinite, box)):
        problem = "which are not four finite numbers"
    elif x1 < x0 or y1 < y0:
        problem = "whose corners are swapped"
    if problem:
        corners = ", ".join(f"{k} {text[:60] or 'missing'}" for k, text in zip(_CORNERS, texts))
        raise OSError(
            f"{path}: an object of the class {name!r} has the corners {corners}, {problem}. "
            "Correct them, or take the object out"
        )
    return box


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
