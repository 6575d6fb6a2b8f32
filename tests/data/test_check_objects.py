"""What is said of the records of any data set, in whatever format it is kept."""

import numpy as np
import pycocotools.mask
import pytest
from detectron2.structures import BoxMode

from dcn_projects.data import check_objects

POLYGON, RLE = [[0, 0, 9, 0, 9, 9]], dict(counts="a2", size=[9, 9])
CORNERS, SIDES = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS


def records(**more):
    annotation = dict(bbox=[5, 6, 7, 8], bbox_mode=SIDES, category_id=0) | more
    annotation = {key: value for key, value in annotation.items() if value is not ...}
    image = {"file_name": "1.jpg", "width": 9, "height": 9, "annotations": [annotation]}
    return [{"file_name": "0.jpg", "annotations": []}, image]


@pytest.mark.parametrize(
    "annotation, options",
    [
        ({}, {}),
        ({}, dict(num_classes=1)),
        (dict(category_id=77), {}),
        (dict(bbox=[5, 6, 5, 8], bbox_mode=CORNERS), {}),
        (dict(segmentation=[[]]), {}),  # nothing reads it
        (dict(segmentation=POLYGON), dict(masks="polygon")),
        (dict(segmentation=RLE), dict(masks="bitmask")),
        (dict(segmentation=RLE), dict(masks="any")),
        (dict(segmentation=RLE, iscrowd=1), dict(masks="polygon")),
        (dict(segmentation=RLE | dict(counts=[81]), iscrowd=1), dict(masks="polygon")),
        (dict(iscrowd=1), dict(masks="polygon", num_keypoints=2)),
        (dict(iscrowd=True, segmentation=RLE), dict(masks="any", evaluated=True)),
        (dict(keypoints=[1, 2, 2, 0, 0, 0]), dict(num_keypoints=2)),
        (dict(keypoints=[[1, 2, 2], [0, 0, 0]]), dict(num_keypoints=2)),
        (dict(keypoints=np.zeros(6)), dict(num_keypoints=2)),
    ],
    ids=str,
)
def test_objects_that_can_be_used(annotation, options):
    check_objects("mine", records(**annotation), **options)
    unknown_size = records(**annotation)
    del unknown_size[1]["width"], unknown_size[1]["height"]
    check_objects("mine", unknown_size, **options)


MEND = "Correct it, or take it out"


@pytest.mark.parametrize(
    "annotation, options, problem",
    [
        (dict(bbox=...), {}, "no 'bbox'"),
        (dict(bbox_mode=...), {}, "no 'bbox_mode'"),
        (dict(category_id=...), {}, "no 'category_id'"),
        (dict(bbox=None), {}, f"the box None, expected a list of four numbers. {MEND}"),
        (
            dict(bbox=[5, 6, 4, 8], bbox_mode=CORNERS),
            {},
            f"the box [5, 6, 4, 8], whose width or height is negative. {MEND}",
        ),
        (
            dict(bbox=[5, 6, 1, 1, 30], bbox_mode=BoxMode.XYWHA_ABS),
            dict(evaluated=True),
            "a rotated box (BoxMode.XYWHA_ABS), which the evaluators of this package do not read",
        ),
        (dict(category_id=1), dict(num_classes=1), "the category_id 1, expected 0 to 0"),
        (dict(category_id=-1), dict(num_classes=1), "the category_id -1, expected 0 to 0"),
        (
            dict(category_id="cat"),
            dict(num_classes=3),
            "the category_id 'cat', expected a whole number from 0 on",
        ),
        (dict(category_id=[1]), {}, "the category_id [1], expected a whole number from 0 on"),
        (dict(category_id=0.5), dict(num_classes=3), "the category_id 0.5, expected 0 to 2"),
        (dict(iscrowd=None), {}, "the iscrowd None, expected 0 or 1"),
        (
            dict(segmentation=dict(counts=[81], size=[9, 9])),
            dict(masks="bitmask"),
            "RLE with a list of counts, which detectron2 cannot read: give "
            "pycocotools.mask.frPyObjects(mask, height, width)",
        ),
        (
            dict(bbox_mode=BoxMode.XYWHA_ABS),
            {},
            f"the rotated box [5, 6, 7, 8], expected five numbers. {MEND}",
        ),
        (
            dict(iscrowd=1),
            dict(masks="any", evaluated=True),
            "no mask. Give it one, though it is a crowd, or take it out: the evaluation reads it",
        ),
        (
            dict(iscrowd=1),
            dict(num_keypoints=1, evaluated=True),
            "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False",
        ),
        (
            dict(keypoints=["1", "2", "2"]),
            dict(num_keypoints=1),
            f"the keypoints ['1', '2', '2'], expected a list of x, y, visibility of each. {MEND}",
        ),
        (
            {},
            dict(masks="polygon"),
            "no mask. Take data with masks, or MODEL.MASK_ON False for boxes only",
        ),
        (
            dict(segmentation=[]),
            dict(masks="any"),
            "no mask. Take data with masks, or MODEL.MASK_ON False for boxes only",
        ),
        (
            dict(segmentation=RLE),
            dict(masks="polygon"),
            "a mask that is no polygon: give INPUT.MASK_FORMAT bitmask",
        ),
        (
            dict(segmentation=[[0, 0, 9, 0, 1e8, 9]]),
            dict(masks="bitmask"),
            f"a polygon far outside of the image of 9 x 9 pixels. {MEND}",
        ),
        (
            dict(segmentation=RLE | {"counts": [80]}),
            dict(masks="any"),
            f"RLE whose counts add up to 80, expected 9 x 9 pixels. {MEND}",
        ),
        (
            dict(keypoints=np.zeros(0)),
            dict(num_keypoints=2),
            "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False",
        ),
        (
            dict(keypoints=[]),
            dict(num_keypoints=2),
            "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False",
        ),
        (
            {},
            dict(num_keypoints=2),
            "no keypoints. Take data with keypoints, or MODEL.KEYPOINT_ON False",
        ),
        (
            dict(keypoints=[1, 2, 2]),
            dict(num_keypoints=2),
            f"3 numbers for keypoints, expected 3 for each of 2. {MEND}",
        ),
        (
            dict(keypoints=[1, float("inf"), 2]),
            dict(num_keypoints=1),
            f"a keypoint that is not finite. {MEND}",
        ),
    ],
    ids=str,
)
def test_objects_that_cannot_be_used(annotation, options, problem):
    with pytest.raises(OSError) as error:
        check_objects("mine", records(**annotation), **options)
    assert str(error.value) == (
        f"1.jpg: in the annotations of data set mine an object has {problem}"
    )


def test_images_without_annotations():
    """An evaluation reads what is there; a training needs a list for each image."""
    without = [{"file_name": "0.jpg"}]
    check_objects("mine", without, evaluated=True)
    with pytest.raises(OSError, match="0.jpg: data set mine has no 'annotations' of it. Where"):
        check_objects("mine", without)


def test_boxes_in_fractions_of_an_image():
    fractions = records(bbox=[0.1, 0.25, 0.5, 0.5])
    with pytest.raises(
        OSError, match="data set mine: the numbers of all 1 boxes are between 0 and"
    ):
        check_objects("mine", fractions)
    # Another box shows that they are pixels; so do whole numbers.
    check_objects("mine", fractions + records())
    check_objects("mine", records(bbox=[0, 0, 1, 1]))


@pytest.mark.parametrize(
    "box, mode",
    [
        ([5, 6, 0, 2], SIDES),
        ([5, 6, 5, 8], CORNERS),
        ([9, 2, 3, 3], SIDES),
        ([-4, 2, 4, 3], SIDES),
        ([1, 9.5, 3, 11], CORNERS),
    ],
    ids=str,
)
def test_boxes_without_area_are_told(box, mode, caplog):
    check_objects("mine", records(bbox=[1, 2, 3, 4]) + records(bbox=box, bbox_mode=mode))
    assert caplog.messages == [
        "data set mine: 1 of 2 boxes have no area in their images: such objects are not learnt, "
        f"and cannot be found. The first is {box} in 1.jpg"
    ]


@pytest.mark.parametrize(
    "form, mode", [("x, y, width, height", SIDES), ("x0, y0, x1, y1", CORNERS)]
)
def test_boxes_that_reach_out_are_told(form, mode, caplog):
    """As those do that were written in another form, or for images of another size."""
    good = records(bbox=[0, 1, 9, 8], bbox_mode=mode)
    check_objects("mine", good + records(bbox=[0, 1, 9.5, 9], bbox_mode=mode) + good)
    assert not caplog.messages  # rounding
    check_objects("mine", good + records(bbox=[6, 6, 8, 10.5], bbox_mode=mode))
    assert caplog.messages == [
        "data set mine: 1 of 2 boxes reach out of their images by more than a pixel, read as "
        f"[{form}]. The first is [6, 6, 8, 10.5] in 1.jpg"
    ]


@pytest.mark.parametrize(
    "mask",
    [
        RLE,
        pycocotools.mask.encode(np.zeros((9, 9), np.uint8, order="F")),
        [[3, 3, 3, 3, 3, 3]],
        [[1, 3, 5, 3, 7, 3], [2, 1, 2, 5, 2, 8]],
    ],
    ids=str,
)
def test_masks_without_pixels_are_told(mask, caplog):
    box = [0, 1, 9, 8]
    good = records(bbox=box, segmentation=[[1, 3, 5, 3, 7, 4]])
    good += records(
        bbox=box, segmentation=pycocotools.mask.encode(np.eye(9, dtype=np.uint8, order="F"))
    )
    check_objects("mine", good + records(bbox=box, segmentation=mask))  # nothing reads them
    check_objects("mine", good, masks="any")
    assert not caplog.messages
    check_objects("mine", good + records(bbox=box, segmentation=mask), masks="any")
    assert caplog.messages == [
        "data set mine: 1 masks have no pixel: such objects are not learnt, and cannot be found. "
        "The first is in 1.jpg"
    ]
