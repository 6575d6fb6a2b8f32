"""What is said of files in the COCO format that would be misread, or stumbled over later."""

import copy
import gzip
import json
import os

import pytest

from dcn_projects.data.datasets.check_coco_json import check_coco_json

POLYGON = [[0, 0, 9, 0, 9, 9]]
CONTENT = {
    "images": [
        {"id": 3, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 5, "file_name": "b.jpg", "width": 30, "height": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 2, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 4, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
    ],
    "categories": [{"id": 2, "name": "cat"}, {"id": 4, "name": "dog"}],
}


def changed(where, value):
    """A copy of CONTENT with the value at a path of keys, "annotations.1.id"; None deletes it."""
    content = copy.deepcopy(CONTENT)
    *path, last = (int(key) if key.isdigit() else key for key in where.split("."))
    target = content
    for key in path:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return content


@pytest.fixture
def check(tmp_path):
    """check(content, evaluated) writes the file, and returns the error without the path, or None"""
    path = tmp_path / "mine.json"

    def check(content, evaluated=True):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        path.write_bytes(content)
        try:
            check_coco_json(str(path), evaluated)
        except OSError as e:
            message = str(e)
            assert message.startswith(f"{path}: ") and "\n" not in message
            return message.removeprefix(f"{path}: ")

    return check


@pytest.mark.parametrize(
    "where, value",
    [
        ("annotations", []),
        ("annotations.0.segmentation", POLYGON),
        ("annotations.0.segmentation", []),
        ("annotations.0.segmentation", {"size": [30, 40], "counts": [1200]}),
        ("annotations.0.id", 0),
        ("annotations.0.id", "first"),
        ("annotations.0.ignore", 0),
        ("annotations.0.iscrowd", 1),
        ("annotations.0.iscrowd", True),
        ("annotations.0.ignore", False),
        ("annotations.0.keypoints", []),
        ("images.0.width", 40.0),
        ("licenses", {"none": []}),
        ("annotations.0.image_id", 77),  # an image was taken out
        ("annotations.0.area", 0.5),
        ("info", {"year": 2026}),
    ],
)
def test_files_that_can_be_used(where, value, check):
    assert check(changed(where, value)) is None


def test_what_is_only_evaluated(check):
    for key in ("area", "iscrowd"):
        assert check(changed(f"annotations.1.{key}", None), evaluated=False) is None
    assert check(changed("annotations", None)) is None  # as of COCO's test sets
    assert check(changed("annotations", None), evaluated=False) == "there is no list 'annotations'"


SECOND = "annotations[1] (id 2) in b.jpg has "
PROBLEMS = [
    (
        "annotations.1.category_id",
        77,
        "the category_id 77, which is none of the categories' (2, 4)",
    ),
    ("annotations.1.category_id", "4", "the category_id '4', which is none of the categories' (2"),
    ("annotations.1.ignore", 1, '"ignore": 1, which detectron2 refuses. Make it "iscrowd": 1, or'),
    ("annotations.1.ignore", True, '"ignore": True, which detectron2 refuses'),
    ("annotations.1.ignore", [], '"ignore": [], which detectron2 refuses'),
    ("annotations.1.bbox", ["1", "2", "3", "4"], "the box ['1', '2', '3', '4'], expected four num"),
    ("annotations.1.bbox", "1234", "the box '1234', expected a list of four numbers"),
    ("annotations.1.bbox", [1, 2, 10**400, 4], "the box [1, 2, 1000"),
    ("annotations.1.area", 10**400, "the area " + "1000000000" + "0" * 30 + ", expected pixels"),
    ("annotations.1.segmentation", [[0, 0, 9, 10**400, 9, 9]], "a polygon with numbers that are n"),
    ("annotations.1.keypoints", "abc", "the keypoints 'abc', expected a list of x, y, visibility"),
    ("annotations.1.keypoints", [[1, 2, 2]], "the keypoints [[1, 2, 2]], expected a list of x, y"),
    ("annotations.1.keypoints", [1, 2, 2], "no 'num_keypoints', which the evaluation of keypoints"),
    ("annotations.1.iscrowd", "no", "the iscrowd 'no', expected 0 or 1"),
    ("annotations.1.area", -1, "the area -1, expected pixels"),
    ("annotations.1.area", "big", "the area 'big', expected pixels"),
    ("annotations.1.area", float("nan"), "the area nan, expected pixels"),
    ("annotations.1.bbox", [1, 2, float("nan"), 4], "the box [1, 2, nan, 4], which is not finite"),
    ("annotations.1.bbox", [], "the box [], expected four numbers"),
    ("annotations.1.bbox", [1, 2, 1e8, 4], "the box [1, 2, 100000000.0, 4], far outside of the im"),
    ("annotations.1.segmentation", POLYGON[0], "a flat list of numbers for polygons"),
    ("annotations.1.segmentation", [[]], "a polygon of 0 numbers"),
    ("annotations.1.segmentation", [[1, 2, 3, 4]], "a polygon of 4 numbers"),
    ("annotations.1.segmentation", [[0, 0], [9, 0], [9, 9]], "a polygon of 2 numbers"),
    (
        "annotations.1.segmentation",
        [[0, 0, 9, 1e8, 9, 9]],
        "a polygon far outside of the image of 3",
    ),
    (
        "annotations.1.segmentation",
        {"size": [30, 40], "counts": [1200]},
        "RLE of the size [30, 40], which is [width, height], expected [40, 30], its image's",
    ),
    (
        "annotations.1.segmentation",
        {"size": [9, 9], "counts": [81]},
        "RLE of the size [9, 9], expected [40, 30], its image's",
    ),
    (
        "annotations.1.segmentation",
        {"size": [40, 30], "counts": [600, 20]},
        "RLE whose counts add up to 620, expected 40 x 30 pixels",
    ),
    (
        "annotations.1.segmentation",
        {"size": [40, 30], "counts": "0h0"},
        "RLE whose counts add up to 24, expected 40 x 30 pixels",
    ),
]


@pytest.mark.parametrize("where, value, problem", PROBLEMS, ids=str)
def test_annotations(where, value, problem, check):
    assert check(changed(where, value)).startswith(SECOND + problem)


@pytest.mark.parametrize(
    "where, value, problem",
    [
        ("annotations.1.id", 1, "the id 1 is that of 2 annotations. Number them from 1 on"),
        ("annotations.1.id", [1], "annotations[1] (id [1]) has the id [1], expected a number or"),
        (
            "annotations.1.image_id",
            "5",
            "annotations[1] (id 2) has the image_id '5', a text, and the ids of the images are such"
            " as 3",
        ),
        (
            "annotations.1.image_id",
            {"$oid": 5},
            "annotations[1] (id 2) has the image_id {'$oid': 5}",
        ),
        ("annotations.1", "cat", "'annotations' must be a list of objects"),
        ("annotations.1.bbox", None, "annotations[1] has no 'bbox': {\"id\": 2"),
        ("annotations.1.image_id", None, "annotations[1] has no 'image_id': "),
        ("annotations.1.category_id", None, "annotations[1] has no 'category_id': "),
        ("images.1.id", 3, "the id 3 is that of 2 images. Number them from 1 on"),
        (
            "images.1.id",
            "5",
            "images[1] has the id '5', a text: expected whole numbers, or texts, for all images",
        ),
        ("images.1.id", 5.5, "images[1] has the id 5.5, a number: expected whole numbers"),
        ("images.1.file_name", None, "images[1] has no 'file_name': "),
        ("images.1.file_name", "", "images[1] has the file_name '', expected a path"),
        ("images.1.width", None, "images[1] has no 'width': "),
        ("images.1.height", 0, "images[1] has the height 0, expected a whole number of pixels"),
        ("images.1.height", 40.5, "images[1] has the height 40.5, expected a whole number of"),
        ("images.1.height", True, "images[1] has the height True, expected a whole number of"),
        ("images.1.height", "40", "images[1] has the height '40', expected a whole number of"),
        ("categories.1.id", True, "categories[1] has the id True, expected a whole number"),
        ("images", [], "the list 'images' is empty"),
        ("categories", [], "the list 'categories' is empty"),
        ("categories", None, "there is no list 'categories'"),
        ("categories", {"cat": 2}, "'categories' must be a list of objects"),
        ("categories.1.name", None, "categories[1] has no 'name': "),
        ("categories.1.name", 7, "categories[1] has the name 7, expected a text"),
        ("categories.1.id", "4", "categories[1] has the id '4', expected a whole number"),
        ("categories.1.id", 2, "the id 2 is that of 2 categories. Number them from 1 on"),
    ],
    ids=str,
)
def test_the_lists(where, value, problem, check):
    assert check(changed(where, value)).startswith(problem)


def test_what_the_evaluation_needs(check):
    error = check(changed("annotations.1.area", None))
    assert error.startswith("annotations[1] has no 'area': ")
    assert error.endswith(". Without masks it is the width times the height of bbox")
    assert check(changed("annotations.1.iscrowd", None)).endswith(
        ". It is 0 where an annotation is of one object"
    )


def test_annotations_of_no_image(check):
    content = changed("annotations.0.image_id", 77)
    content["annotations"][1]["image_id"] = 78
    assert check(content) == (
        "the annotations are of none of the images: compare image_id with the images' id"
    )


BOM = "the file begins with a byte order mark (BOM), which JSON must not have. Save it as UTF-8"
LATIN = "line 2 has a byte that is not UTF-8, perhaps a letter in Latin-1. Save the file as UTF-8"


@pytest.mark.parametrize(
    "content, problem",
    [
        (json.dumps(CONTENT).encode("utf-8-sig"), BOM),
        (json.dumps(CONTENT).encode("utf-16"), BOM),
        (json.dumps(CONTENT, indent=0).encode()[:1] + b'\n"\xe4": 1}', LATIN),
        (json.dumps(CONTENT).encode()[:100], "the file is cut off or no JSON (Unterminated string"),
        (b"", "the file is empty. Copy it again"),
        (
            gzip.compress(json.dumps(CONTENT).encode()),
            "the file is compressed (gzip or zip). Unpack",
        ),
        (b"PK\x03\x04\x14", "the file is compressed (gzip or zip). Unpack it"),
        (b"\n", "the file is empty. Copy it again"),
        (b"<annotation/>", "the file is cut off or no JSON (Expecting value: line 1 column 1"),
        (b"[" * 100_000, "the file is nested too deeply for annotations"),
        (
            b"[{}]",
            "a list at the top level, expected an object with images, annotations and categories",
        ),
        (b"null", "a null at the top level, expected"),
        (b"{}", "there is no list 'images'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_files_that_cannot_be_read(content, problem, check):
    assert check(content).startswith(problem)


def test_two_categories_of_one_name_are_told(check, caplog):
    assert check(changed("categories.1.name", "cat")) is None
    assert "mine.json has 2 categories of the name cat" in caplog.text


def test_the_minival_of_coco_2014_may_repeat_ids(tmp_path):
    path = tmp_path / "instances_minival2014.json"
    path.write_text(json.dumps(changed("annotations.1.id", 1)))
    check_coco_json(str(path), evaluated=True)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file(make, tmp_path):
    """A pipe is not waited for."""
    path = str(tmp_path / "mine.json")
    make(path)
    with pytest.raises(OSError, match="mine.json: this is no file. Name the JSON file"):
        check_coco_json(path, evaluated=True)
