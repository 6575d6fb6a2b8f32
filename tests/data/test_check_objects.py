import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from dcn_projects.data import check_objects_to_evaluate, check_objects_to_learn

NAN, INF = float("nan"), float("inf")
POLYGON, RLE = [[0, 0, 9, 0, 9, 9]], dict(counts="", size=[9, 9])
CORNERS, SIDES = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
BAD_BOXES = [None, "abc", [1, 2, 3], [1, 2, 3, "x"], [NAN, 1, 2, 3], [1, 2, INF, 3], [1, 2, -5, 3]]


def record(**more):
    annotation = dict(bbox=[5, 6, 7, 8], bbox_mode=SIDES, category_id=0) | more
    return [{"file_name": "0.jpg"}, {"file_name": "1.jpg", "annotations": [annotation]}]


@pytest.mark.parametrize(
    "annotation, mask_format",
    [
        ({}, None),
        (dict(bbox=[5, 6, 0, 0]), None),
        (dict(bbox=[5, 6, 5, 8], bbox_mode=CORNERS), None),
        (dict(bbox=[5, 6, 1, 1, 30], bbox_mode=BoxMode.XYWHA_ABS), None),
        (dict(segmentation=POLYGON), "polygon"),
        (dict(segmentation=RLE), "bitmask"),
        (dict(segmentation=RLE, iscrowd=1), "polygon"),
    ],
    ids=str,
)
def test_objects_that_can_be_learnt(annotation, mask_format):
    check_objects_to_learn(record(**annotation), mask_format)


@pytest.mark.parametrize(
    "annotation, mask_format, message",
    [
        *((dict(bbox=box), None, "the box") for box in BAD_BOXES),
        (dict(bbox=[5, 6, 4, 8], bbox_mode=CORNERS), None, "the box"),
        ({}, "polygon", "no mask.*MASK_ON False"),
        (dict(segmentation=[]), "bitmask", "no mask"),
        (dict(segmentation=RLE), "polygon", "INPUT.MASK_FORMAT bitmask"),
    ],
    ids=str,
)
def test_objects_that_cannot_be_learnt(annotation, mask_format, message):
    with pytest.raises(OSError, match=f"1.jpg: in the annotations an object has .*{message}"):
        check_objects_to_learn(record(**annotation), mask_format)


@pytest.fixture
def check(tmp_path):
    """check(entry, masks) evaluates on a data set with one object."""

    def check(entry, masks=False):
        (tmp_path / "mine.json").write_text(json.dumps({"annotations": [entry]}))
        check_objects_to_evaluate(["mine"], masks)

    register_coco_instances("mine", {}, str(tmp_path / "mine.json"), str(tmp_path))
    yield check
    DatasetCatalog.remove("mine")
    MetadataCatalog.remove("mine")


ENTRY = dict(bbox=[5, 6, 7, 8], area=56, iscrowd=0, id=1, image_id=1, category_id=1)


def test_objects_that_can_be_evaluated(check):
    check(ENTRY)
    check(ENTRY | dict(segmentation=POLYGON), masks=True)
    check_objects_to_evaluate(["voc_2007_test"])  # not in this format, and not there


@pytest.mark.parametrize("key", ["bbox", "area", "iscrowd", "id"])
def test_what_the_evaluation_reads_is_missing(key, check):
    entry = {k: v for k, v in ENTRY.items() if k != key}
    with pytest.raises(OSError, match=f"data set mine: .*mine.json has an object without {key}"):
        check(entry)


def test_objects_that_cannot_be_evaluated(check):
    for box in BAD_BOXES:
        with pytest.raises(OSError, match="mine.json has an object with the box"):
            check(ENTRY | dict(bbox=box))
    with pytest.raises(OSError, match="mine.json has objects without masks"):
        check(ENTRY, masks=True)
