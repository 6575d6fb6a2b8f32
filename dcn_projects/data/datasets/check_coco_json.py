"""Tell in one line what is wrong with a file of annotations in the COCO format."""

import json
import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from numbers import Real

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .check_shapes import box_problem, is_count, keypoint_form_problem, mask_problem

__all__ = ["check_coco_json"]

_LISTS = ("images", "annotations", "categories")
_OF_IMAGE = ("id", "file_name", "width", "height")
_OF_ANNOTATION = ("id", "image_id", "category_id", "bbox")
_TO_EVALUATE = ("area", "iscrowd")  # what pycocotools reads of an annotation, too


def check_coco_json(path: str, evaluated: bool) -> None:
    """
    Find what detectron2 or pycocotools would stumble over, leave out or take for something else.

    Args:
        path: of the file
        evaluated: the data set is evaluated on, and not only learnt from. Such a file may be
            without "annotations"
    Raises:
        OSError: one line that names the file, the place in it, and what is wrong there
    """
    content = _read(path)
    # detectron2 knows, and allows, that ids repeat in the minival of COCO 2014.
    problem = next(_problems(content, evaluated, unique="minival" not in path), None)
    if problem is not None:
        raise OSError(f"{path}: {problem}")
    names = Counter(category["name"] for category in content["categories"])
    for name, count in names.items():
        if count > 1:
            logging.getLogger(__name__).warning(f"{path} has {count} categories of the name {name}")


def _read(path: str):
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):  # a pipe would be waited for
        raise OSError(f"{path}: this is no file. Name the JSON file with the annotations")
    with open(local, "rb") as f:
        text = f.read()
    if text.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise OSError(f"{path}: the file is compressed (gzip or zip). Unpack it")
    if text.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise OSError(
            f"{path}: the file begins with a byte order mark (BOM), which JSON must not have. Save "
            "it as UTF-8 without BOM"
        )
    try:
        text = text.decode()
        return json.loads(text)
    except UnicodeDecodeError as e:
        line = text.count(b"\n", 0, e.start) + 1
        raise OSError(
            f"{path}: line {line} has a byte that is not UTF-8, perhaps a letter in Latin-1. Save "
            "the file as UTF-8"
        ) from e
    except json.JSONDecodeError as e:
        what = "is empty" if not text.strip() else f"is cut off or no JSON ({e})"
        raise OSError(f"{path}: the file {what}. Copy it again") from e
    except RecursionError as e:
        raise OSError(f"{path}: the file is nested too deeply for annotations") from e


def _problems(content, evaluated: bool, unique: bool) -> Iterator[str]:
    if not isinstance(content, Mapping):
        yield (
            f"a {_kind(content)} at the top level, expected an object with images, annotations and "
            "categories"
        )
    for key in _LISTS:
        if key not in content and not (evaluated and key == "annotations"):
            yield f"there is no list {key!r}"
        entries = content.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
            yield f"{key!r} must be a list of objects"
        if not entries and key != "annotations":
            yield f"the list {key!r} is empty"
    yield from _problems_of_categories(content["categories"])
    yield from _problems_of_images(content["images"])
    yield from _problems_of_annotations(content, evaluated)
    if unique:
        yield from _repeated("annotations", content.get("annotations", []))


def _problems_of_categories(categories: list) -> Iterator[str]:
    for i, category in enumerate(categories):
        where = f"categories[{i}]"
        yield from _missing(where, category, ("id", "name"))
        if type(category["id"]) is not int:
            yield f"{where} has the id {category['id']!r:.60}, expected a whole number"
        if not isinstance(category["name"], str):
            yield f"{where} has the name {category['name']!r:.60}, expected a text"
    yield from _repeated("categories", categories)


def _problems_of_images(images: list) -> Iterator[str]:
    kind = type(images[0].get("id"))
    for i, image in enumerate(images):
        where = f"images[{i}]"
        yield from _missing(where, image, _OF_IMAGE)
        if type(image["id"]) is not kind or kind not in (int, str):
            yield (
                f"{where} has the id {image['id']!r:.60}, a {_kind(image['id'])}: expected whole "
                "numbers, or texts, for all images"
            )
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            yield f"{where} has the file_name {image['file_name']!r:.60}, expected a path"
        for side in ("width", "height"):
            if not is_count(image[side]):
                found = f"{image[side]!r:.60}"
                yield f"{where} has the {side} {found}, expected a whole number of pixels"
    yield from _repeated("images", images)


def _problems_of_annotations(content: Mapping, evaluated: bool) -> Iterator[str]:
    annotations = content.get("annotations", [])
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    keys = (*_OF_ANNOTATION, *(_TO_EVALUATE if evaluated else ()))
    matched = 0
    for i, entry in enumerate(annotations):
        where = f"annotations[{i}]"
        yield from _missing(where, entry, keys)
        where += f" (id {entry['id']!r:.60})"
        for key in ("id", "image_id", "category_id"):
            if not isinstance(entry[key], Hashable):
                yield f"{where} has the {key} {entry[key]!r:.40}, expected a number or a text"
        image = images.get(entry["image_id"])
        if image is None:
            if type(entry["image_id"]) is not type(content["images"][0]["id"]):
                yield (
                    f"{where} has the image_id {entry['image_id']!r:.60}, a "
                    f"{_kind(entry['image_id'])}, and the ids of the images are such as "
                    f"{content['images'][0]['id']!r:.60}"
                )
            continue  # of an image that was taken out; detectron2 warns
        matched += 1
        where += f" in {image['file_name']}"
        if entry["category_id"] not in categories:
            known = ", ".join(map(str, sorted(categories)[:10]))
            more = ", ..." if len(categories) > 10 else ""
            yield (
                f"{where} has the category_id {entry['category_id']!r:.60}, which is none of the "
                f"categories' ({known}{more})"
            )
        if entry.get("ignore", 0) != 0:
            yield (
                f'{where} has "ignore": {entry["ignore"]!r:.60}, which detectron2 refuses. Make it '
                '"iscrowd": 1, or take the annotation out'
            )
        if entry.get("iscrowd", 0) not in (0, 1):
            yield f"{where} has the iscrowd {entry['iscrowd']!r:.60}, expected 0 or 1"
        if evaluated and (not isinstance(entry["area"], Real) or not 0 <= entry["area"] < 1e15):
            yield f"{where} has the area {entry['area']!r:.40}, expected pixels"
        size = image["width"], image["height"]
        problem = box_problem(entry["bbox"], BoxMode.XYWH_ABS, *size)
        if not problem and entry.get("segmentation"):
            problem = mask_problem(entry["segmentation"], *size)
        if not problem and entry.get("keypoints"):
            problem = keypoint_form_problem(entry["keypoints"], nested=False)
        if problem:
            yield f"{where} has {problem}"
        if evaluated and entry.get("keypoints") and "num_keypoints" not in entry:
            yield (
                f"{where} has no 'num_keypoints', which the evaluation of keypoints reads. It is "
                "the number of those whose visibility is above 0"
            )
    if annotations and not matched:
        yield "the annotations are of none of the images: compare image_id with the images' id"


def _missing(where: str, entry: Mapping, keys: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if key not in entry:
            advice = ""
            if key == "area":
                advice = ". Without masks it is the width times the height of bbox"
            elif key == "iscrowd":
                advice = ". It is 0 where an annotation is of one object"
            yield f"{where} has no {key!r}: {json.dumps(entry):.80}{advice}"


def _repeated(where: str, entries: list) -> Iterator[str]:
    count = Counter(entry["id"] for entry in entries)
    if len(count) < len(entries):
        repeated, times = count.most_common(1)[0]
        yield f"the id {repeated!r:.60} is that of {times} {where}. Number them from 1 on"


def _kind(value) -> str:
    """JSON's name of a type."""
    names = {str: "text", bool: "truth value", list: "list", dict: "object", type(None): "null"}
    return names.get(type(value), "number")
