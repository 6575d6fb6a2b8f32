"""Every object is found when everything is right, whatever the ids of the annotations are."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from dcn_projects.evaluation import COCOThresholdEvaluator

from .coco_files import SIZE, feed, make_content, perfect

OBJECTS = [
    (1, 1, (10, 10, 50, 50)),
    (1, 2, (100, 100, 50, 50)),
    (2, 1, (20, 20, 120, 60)),
]
NUMBERED = "are numbered from 1 on"
IDS = {
    "from 0": [0, 1, 2],
    "0 in the middle": [7, 0, 3],
    "negative": [-1, -2, -3],
    "names": ["a", "b", "c"],
    "digits": ["0", "1", "2"],
    "fractions": [0.25, 0.5, 1.5],
    "whole floats": [0.0, 1.0, 2.0],
    "nothing": [None, 1, 2],
    "truth values": [False, 2, 3],
    "longer than float64": [2**70, 2**70 + 1, 2**70 + 2],
}


def results_of(content, register, tmp_path, masks=True):
    evaluator = COCOThresholdEvaluator(register(content), output_dir=str(tmp_path / "out"))
    return feed(evaluator, perfect(content), masks).evaluate()


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_perfect_detections(ids, num_objects, register_coco, tmp_path, caplog):
    content = make_content(OBJECTS[:num_objects])
    for entry, number in zip(content["annotations"], IDS[ids]):
        entry["id"] = number
    before = json.dumps(content)
    results = results_of(content, register_coco, tmp_path)
    for task in ("bbox", "segm"):
        for metric in ("AP", "AP50", "AP75", "AP95", "AP-c1"):
            assert results[task][metric] == pytest.approx(100)
    path = tmp_path / f"{tmp_path.name}_0.json"
    assert path.read_text() == before
    usable = ids == "0 in the middle" and num_objects == 1
    lines = [r.getMessage() for r in caplog.records if NUMBERED in r.getMessage()]
    assert len(lines) == (not usable)
    if not usable:
        assert str(path) in lines[0] and "\n" not in lines[0]


def test_ids_that_repeat_between_images(register_coco, tmp_path, caplog):
    """The loader of detectron2 refuses them, the evaluator need not."""
    content = make_content(OBJECTS)
    name = register_coco(content)
    content["annotations"][2]["id"] = 1
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    evaluator = COCOThresholdEvaluator(name, output_dir=str(tmp_path / "out"))
    results = feed(evaluator, perfect(content), masks=True).evaluate()
    assert (results["bbox"]["AP"], results["segm"]["AP"]) == pytest.approx((100, 100))
    assert NUMBERED in caplog.text


@pytest.mark.parametrize("ids", [[1, 2, 3], [30, 10, 20], [1, 2**53, 2**40]])
def test_ids_that_can_be_used_stay(ids, register_coco, tmp_path, caplog):
    content = make_content(OBJECTS)
    for entry, number in zip(content["annotations"], ids):
        entry["id"] = number
    assert results_of(content, register_coco, tmp_path)["segm"]["AP"] == pytest.approx(100)
    assert NUMBERED not in caplog.text


def test_records_without_a_file(tmp_path, caplog):
    """detectron2 writes the file, and numbers its annotations from 1 on."""
    records = [
        {"file_name": f"{i}.jpg", "image_id": i, "height": SIZE, "width": SIZE}
        | {
            "annotations": [
                {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": k - 1}
                for image, k, box in OBJECTS
                if image == i + 1
            ]
        }
        for i in range(2)
    ]
    name = f"records_of_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["c1", "c2"]
    evaluator = COCOThresholdEvaluator(name, output_dir=str(tmp_path))
    detections = {
        r["image_id"]: [(a["category_id"], 0.9, a["bbox"]) for a in r["annotations"]]
        for r in records
    }
    assert feed(evaluator, detections).evaluate()["bbox"]["AP"] == pytest.approx(100)
    written = json.loads((tmp_path / f"{name}_coco_format.json").read_text())
    assert [entry["id"] for entry in written["annotations"]] == [1, 2, 3]
    assert NUMBERED not in caplog.text
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
