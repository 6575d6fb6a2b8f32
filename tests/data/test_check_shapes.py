"""What is said of boxes, masks and keypoints that cannot be used."""

import math

import numpy as np
import pycocotools.mask
import pytest
from detectron2.structures import BoxMode

from dcn_projects.data.datasets.check_shapes import box_problem, keypoint_problem, mask_problem

NAN, INF = math.nan, math.inf
CORNERS, SIDES, ROTATED = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS
SIZE = 40, 30  # width, height of the image


@pytest.mark.parametrize(
    "box, mode",
    [
        ([5, 6, 7, 8], SIDES),
        ([5, 6, 0, 0], SIDES),
        ((5, 6, 5, 8), CORNERS),
        ([np.float32(5.5), np.int64(6), 7, 8], CORNERS),
        ([-40, -30, 120, 90], SIDES),
        ([5, 6, 1, 1, 30], ROTATED),
    ],
    ids=str,
)
def test_boxes(box, mode):
    assert box_problem(box, mode, *SIZE) == ""
    assert box_problem(box, mode, INF, INF) == ""


@pytest.mark.parametrize(
    "box, mode, problem",
    [
        (None, SIDES, "the box None, expected a list of four numbers"),
        ("1234", SIDES, "the box '1234', expected a list of four numbers"),
        (
            dict(a=1, b=2, c=3, d=4),
            SIDES,
            "the box {'a': 1, 'b': 2, 'c': 3, 'd': 4}, expected a list of four numbers",
        ),
        (np.array([5.5, 6, 7, 8]), SIDES, "the box ndarray, expected a list of four numbers"),
        (["1", "2", "3", "4"], SIDES, "the box ['1', '2', '3', '4'], expected four numbers"),
        ([True, 2, 3, 4], SIDES, "the box [True, 2, 3, 4], expected four numbers"),
        ([1, 2, 10**400, 4], SIDES, f"the box {str([1, 2, 10**400])[:60]}, which is not finite"),
        (
            [1, 2, 3, 4],
            "XYWH_ABS",
            "the bbox_mode 'XYWH_ABS', expected BoxMode.XYXY_ABS or XYWH_ABS",
        ),
        ([1, 2, 3, 4], 99, "the bbox_mode 99, expected BoxMode.XYXY_ABS or XYWH_ABS"),
        (
            [0.1, 0.2, 0.3, 0.4],
            BoxMode.XYWH_REL,
            "a box of the mode XYWH_REL, which detectron2 cannot read: give pixels",
        ),
        ([], SIDES, "the box [], expected four numbers"),
        ([1, 2, 3], SIDES, "the box [1, 2, 3], expected four numbers"),
        ([1, 2, 3, "x"], SIDES, "the box [1, 2, 3, 'x'], expected four numbers"),
        ([NAN, 1, 2, 3], SIDES, "the box [nan, 1, 2, 3], which is not finite"),
        ([1, 2, INF, 3], CORNERS, "the box [1, 2, inf, 3], which is not finite"),
        ([1, 2, -5, 3], SIDES, "the box [1, 2, -5, 3], whose width or height is negative"),
        ([5, 6, 4, 8], CORNERS, "the box [5, 6, 4, 8], whose width or height is negative"),
        (
            [1, 2, 1e8, 3],
            SIDES,
            "the box [1, 2, 100000000.0, 3], far outside of the image of 40 x 30 pixels",
        ),
        ([1, 61, 2, 3], SIDES, "the box [1, 61, 2, 3], far outside of the image of 40 x 30 pixels"),
    ],
    ids=str,
)
def test_boxes_that_cannot_be_used(box, mode, problem):
    assert box_problem(box, mode, *SIZE) == problem


def rle(height, width, seed=0, coarse=False):
    """A random mask as COCO writes it, and its run lengths, found pixel by pixel."""
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    if coarse:
        mask = np.kron(mask[:4, :4], np.ones((height // 4, width // 4), bool))
    compressed = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts, value = [0], False
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return compressed, counts


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_run_lengths(seed, coarse):
    compressed, counts = rle(120, 160, seed, coarse)
    assert mask_problem(compressed, 160, 120) == ""
    assert mask_problem({**compressed, "counts": compressed["counts"].decode()}, 160, 120) == ""
    assert mask_problem({"size": [120, 160], "counts": counts}, 160, 120) == ""
    # One pixel more or less is found in both forms.
    assert mask_problem({"size": [120, 160], "counts": [*counts, 1]}, 160, 120) == (
        "RLE whose counts add up to 19201, expected 120 x 160 pixels"
    )
    assert "add up to" in mask_problem({**compressed, "size": [160, 121]}, INF, INF)


POLYGON = [0, 0, 9, 0, 9, 9]


@pytest.mark.parametrize(
    "mask",
    [
        [POLYGON],
        [POLYGON, [1.5, 2, 3, 4, 5, 6, 7, 8]],
        [np.array(POLYGON)],
        (tuple(POLYGON),),
        [[-40, -30, 80, 60, 0, 0]],
        dict(size=[30, 40], counts=[1200]),
        dict(size=(30, 40), counts=[0, 1200]),
    ],
    ids=lambda mask: str(mask)[:30],
)
def test_masks(mask):
    assert mask_problem(mask, *SIZE) == ""
    assert mask_problem(mask, INF, INF) == ""


FAR = "a polygon far outside of the image of 40 x 30 pixels"
FLAT = "a flat list of numbers for polygons, expected a list of lists [[x, y, x, y, ...]]"
ARRAY = "an array as a mask, expected polygons or RLE: give pycocotools.mask.encode(numpy.asfortran"
ARRAY += "array(mask, dtype=numpy.uint8))"
POINTS = "x and y of three points or more"


@pytest.mark.parametrize(
    "mask, problem",
    [
        (POLYGON, FLAT),
        ([1.5], FLAT),
        ([[]], f"a polygon of 0 numbers, expected {POINTS}"),
        ([[1, 2, 3, 4]], f"a polygon of 4 numbers, expected {POINTS}"),
        ([POLYGON, [1, 2, 3, 4, 5, 6, 7]], f"a polygon of 7 numbers, expected {POINTS}"),
        ([[0, 0], [9, 0], [9, 9]], f"a polygon of 2 numbers, expected {POINTS}"),
        ([[[0, 0], [9, 0], [9, 9]]], "a polygon that is no list of numbers [x, y, x, y, ...]"),
        ([["0"] * 6], "a polygon that is no list of numbers [x, y, x, y, ...]"),
        ([[0, 0, 9, 10**400, 9.5, 9]], "a polygon with numbers that are not finite"),
        ([[0, 0, 9, 10**400, 9, 9]], "a polygon with numbers that are not finite"),
        ([np.zeros((6, 2))], "a polygon that is no list of numbers [x, y, x, y, ...]"),
        ([None], "a polygon that is no list of numbers [x, y, x, y, ...]"),
        ([[0, 0, 9, NAN, 9, 9]], "a polygon with numbers that are not finite"),
        ([[0, 0, 9, INF, 9, -INF]], "a polygon with numbers that are not finite"),
        ([[0, 0, 9, 0, 1e8, 9]], FAR),
        ([[0, 0, 9, 0, 9, -1e8]], FAR),
        ([], "a segmentation without polygons"),
        ("abc", "the segmentation 'abc', expected polygons or RLE"),
        (7, "the segmentation 7, expected polygons or RLE"),
        (np.zeros((30, 40), bool), ARRAY),
        (
            dict(size=[40, 30], counts=[1200]),
            "RLE of the size [40, 30], which is [width, height], expected [30, 40], its image's",
        ),
        (
            dict(size=[60, 80], counts=[4800]),
            "RLE of the size [60, 80], expected [30, 40], its image's",
        ),
        (dict(counts=[1200]), "RLE of the size None, expected [height, width]"),
        (dict(size=[30, 0], counts=[]), "RLE of the size [30, 0], expected [height, width]"),
        (
            dict(size=[30, 40], counts=[7, 8]),
            "RLE whose counts add up to 15, expected 30 x 40 pixels",
        ),
        (dict(size=[30, 40], counts=""), "RLE whose counts add up to 0, expected 30 x 40 pixels"),
        (
            dict(size=[30, 40], counts=[1300, -100]),
            "RLE with counts that are negative or no list",
        ),
        (dict(size=[30, 40], counts=7), "RLE with counts that are negative or no list"),
        (
            dict(size=[30, 40], counts="p~"),
            "RLE with the counts 'p~', which cannot be read",
        ),
        (
            dict(size=[30, 40], counts="PPP"),
            "RLE with the counts 'PPP', which cannot be read",
        ),
        (
            dict(size=[30, 40], counts=["a"]),
            "RLE with the counts ['a'], which cannot be read",
        ),
        (
            dict(size=[30, 40], counts=[600.5, 599.5]),
            "RLE with the counts [600.5, 599.5], which cannot be read",
        ),
        (
            dict(size=[30, 40], counts=["1200"]),
            "RLE with the counts ['1200'], which cannot be read",
        ),
        (dict(size=[30, 40]), "RLE with the counts None, which cannot be read"),
    ],
    ids=lambda mask: str(mask)[:30],
)
def test_masks_that_cannot_be_used(mask, problem):
    assert mask_problem(mask, *SIZE) == problem


def test_keypoints():
    assert keypoint_problem([1, 2, 2, 0, 0, 0], 2, *SIZE) == ""
    assert keypoint_problem([1.5, 2, 1, 40, 30, 2], 2, INF, INF) == ""


@pytest.mark.parametrize(
    "keypoints, problem",
    [
        ([1, 2, 2], "3 numbers for keypoints, expected 3 for each of 2"),
        ([], "0 numbers for keypoints, expected 3 for each of 2"),
        ([1, 2, 3, 4, 5, 2], "a keypoint whose visibility is none of 0, 1 and 2"),
        ([1, NAN, 2, 4, 5, 2], "a keypoint that is not finite"),
        ([1, 2, 2, 4, 1e8, 2], "a keypoint far outside of the image of 40 x 30 pixels"),
        ("abc", "the keypoints 'abc', expected a list of x, y, visibility of each"),
        (["1"] * 6, f"the keypoints {['1'] * 6}, expected a list of x, y, visibility of each"),
        ([[1, 2], [3]], "the keypoints [[1, 2], [3]], expected a list of x, y, visibility of each"),
    ],
    ids=str,
)
def test_keypoints_that_cannot_be_used(keypoints, problem):
    assert keypoint_problem(keypoints, 2, *SIZE) == problem
