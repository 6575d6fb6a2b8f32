"""What is said of records that are not in detectron2's standard form."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from dcn_projects.data.datasets.check_records import check_records

POLYGON = [0, 0, 9, 0, 9.5, 9]


def records(**more):
    """Two images, the second with more keys; `...` takes one out."""
    first = {"file_name": "0.jpg", "image_id": 0, "width": 9, "height": 8, "annotations": []}
    second = first | {"file_name": "1.jpg", "image_id": 1} | more
    return [first, {key: value for key, value in second.items() if value is not ...}]


@pytest.fixture
def name():
    name = "records_of_a_test"
    MetadataCatalog.get(name).thing_classes = ["cat"]
    yield name
    MetadataCatalog.remove(name)


def error_of(name, records, evaluated):
    with pytest.raises(ValueError) as error:
        check_records(name, records, evaluated)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {},
        dict(file_name=Path("1.jpg")),
        dict(width=9.0, height=np.int64(8)),
        dict(annotations=...),
        dict(annotations=({},)),
        dict(annotations=[dict(segmentation=[POLYGON], iscrowd=1)]),
        dict(annotations=[dict(segmentation=dict(size=[8, 9], counts=b"x"), iscrowd=False)]),
        dict(annotations=[dict(segmentation=[list(np.array(POLYGON))])]),
        dict(annotations=[dict(keypoints=[1.5, 2, 2], num_keypoints=1)]),
    ],
    ids=str,
)
def test_records_that_can_be_used(more, name):
    check_records(name, records(**more), True)
    check_records(name, tuple(records(**more)), False)


def test_what_is_learnt_needs_less(name):
    less = records(image_id=..., width=..., height=...)
    check_records(name, less, False)
    assert error_of(name, less, True) == (
        "record 1 (1.jpg) has no 'image_id', which the evaluation needs"
    )


@pytest.mark.parametrize(
    "value, problem",
    [
        ({}, "a dict"),
        (None, "a NoneType"),
        (iter([{}]), "a list_iterator"),
        ("a.jpg", "a str"),
    ],
    ids=str,
)
def test_what_is_no_list(value, problem, name):
    assert error_of(name, value, False) == (
        f"its function returns {problem}, expected a list of dicts, one for each image"
    )


def test_no_records(name):
    assert error_of(name, [], False) == "it has no images"


@pytest.mark.parametrize(
    "more, problem",
    [
        (dict(file_name=...), "record 1 has no 'file_name'"),
        (dict(file_name=3), "record 1 (3) has the file_name 3, expected a path"),
        (dict(height=...), "has one of 'width' and 'height', expected both or neither"),
        (dict(width="9"), "has the width '9', expected 1 or more pixels"),
        (dict(width=None), "has the width None, expected 1 or more pixels"),
        (dict(height=8.5), "has the height 8.5, expected 1 or more pixels"),
        (dict(annotations=None), "has a NoneType of annotations, expected a list"),
        (dict(annotations=dict(a={})), "has a dict of annotations, expected a list"),
        (dict(annotations=[{}, "cat"]), "has a str as annotations[1], expected a dict"),
    ],
    ids=str,
)
@pytest.mark.parametrize("evaluated", [False, True])
def test_records_that_cannot_be_used(more, problem, evaluated, name):
    error = error_of(name, records(**more), evaluated)
    assert error.startswith("record 1") and problem in error
    assert "\n" not in error


def test_a_record_that_is_no_dict(name):
    assert error_of(name, [*records(), "a.jpg"], False).startswith(
        "record 2 is a str, expected a dict"
    )


@pytest.mark.parametrize(
    "more, problem",
    [
        (dict(image_id=0), "records 0 (0.jpg) and 1 (1.jpg) have both the image_id 0"),
        (dict(image_id=np.int64(1)), "a int64, expected a whole number (int) or a text (str)"),
        (dict(image_id="b"), "has the image_id 'b', and others are such as 0: give whole numbers"),
        (dict(annotations=[dict(keypoints=7)]), "has a int as keypoints, expected a list of num"),
        (dict(annotations=[dict(keypoints=[10**400])]), "has a list as keypoints, expected a list"),
        (dict(annotations=[dict(num_keypoints="1")]), "has a str as num_keypoints, expected a nu"),
        (dict(image_id=None), "has the image_id None, a NoneType, expected a whole number"),
        (
            dict(annotations=[dict(segmentation=[np.array(POLYGON)])]),
            "has a polygon that is a ndarray and not a list of numbers of Python, in anno",
        ),
        (
            dict(annotations=[dict(segmentation=[[np.int64(x) for x in POLYGON]])]),
            "has a polygon that is a list and not a list of numbers of Python",
        ),
        (
            dict(annotations=[dict(segmentation=np.zeros((8, 9)))]),
            "has a ndarray as segmentation, expected a list of polygons, or RLE, in annotations[0]",
        ),
        (dict(annotations=[{}, dict(segmentation=None)]), "has a NoneType as segmentation"),
        (dict(annotations=[dict(keypoints=np.zeros(3))]), "has a ndarray as keypoints, expected"),
        (dict(annotations=[dict(iscrowd=None)]), "has the iscrowd None in annotations[0]"),
    ],
    ids=str,
)
def test_what_the_evaluation_cannot_write(more, problem, name):
    assert problem in error_of(name, records(**more), True)
    check_records(name, records(**more), False)


def test_no_names_of_classes():
    assert error_of("nameless_records", records(), True) == (
        "its Metadata have no thing_classes, the names of the classes"
    )
    MetadataCatalog.remove("nameless_records")
