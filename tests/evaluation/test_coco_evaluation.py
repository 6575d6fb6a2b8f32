"""AP per threshold: by hand, and as pycocotools gives it for one threshold at a time."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_projects.evaluation import COCOThresholdEvaluator

NAMES = [f"AP{t}" for t in range(50, 100, 5)]
# image, category, box (x, y, width, height)
OBJECTS = [
    (1, 1, (10, 10, 50, 50)),
    (1, 1, (100, 100, 50, 50)),
    (1, 2, (200, 10, 100, 100)),
    (2, 1, (10, 10, 20, 20)),
    (2, 2, (50, 50, 40, 80)),
]


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "objects.json"
    annotations = [
        {"id": i + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
        | {"area": box[2] * box[3]}
        for i, (image, category, box) in enumerate(OBJECTS)
    ]
    content = {
        "info": {},
        "images": [{"id": i, "height": 400, "width": 400, "file_name": ""} for i in (1, 2)],
        "categories": [{"id": k, "name": f"c{k}"} for k in (1, 2, 3)],  # 3 has no objects
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    register_coco_instances("threshold_test", {}, str(path), str(tmp_path))
    DatasetCatalog.get("threshold_test")  # sets the classes of the metadata
    yield path
    DatasetCatalog.remove("threshold_test")
    MetadataCatalog.remove("threshold_test")


def evaluate(detections, output):
    """detections: (image, category, score, box) like OBJECTS"""
    evaluator = COCOThresholdEvaluator("threshold_test", output_dir=str(output))
    evaluator.reset()
    for image in (1, 2):
        found = [d for d in detections if d[0] == image]
        instances = Instances((400, 400))
        boxes = torch.tensor([box for *_, box in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([score for _, _, score, _ in found])
        instances.pred_classes = torch.tensor([k - 1 for _, k, _, _ in found], dtype=torch.int64)
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_by_hand(dataset, tmp_path):
    """Category 2: both boxes have IoU 0.8, so that they are found up to 0.8. Category 1: of 3
    objects one is found exactly (precision 1 at 34 of the 101 recalls, 0 to 0.33)."""
    detections = [
        (1, 2, 0.9, (200, 10, 80, 100)),
        (2, 2, 0.8, (50, 50, 40, 64)),
        (1, 1, 0.9, (10, 10, 50, 50)),
    ]
    results = evaluate(detections, tmp_path)
    one = 34 / 101
    expected = [50 * (1 + one)] * 7 + [50 * one] * 3
    assert [results[name] for name in NAMES] == pytest.approx(expected)
    assert results["AP"] == pytest.approx(np.mean(expected))


def test_agrees_with_pycocotools(dataset, tmp_path):
    rng = np.random.default_rng(0)
    detections = []
    for image, category, box in OBJECTS * 3:
        box = tuple((np.array(box) + rng.normal(0, 0.06, 4) * (box[2:] * 2)).tolist())
        detections.append((image, category, float(rng.random()), box))
    results = evaluate(detections, tmp_path)
    truth = COCO(str(dataset))
    found = truth.loadRes(str(tmp_path / "coco_instances_results.json"))
    expected = []
    for threshold in np.arange(50, 100, 5) / 100:
        single = COCOeval(truth, found, "bbox")
        single.params.iouThrs = np.array([threshold])
        single.evaluate()
        single.accumulate()
        precision = single.eval["precision"][0, :, :, 0, -1]
        expected.append(100 * precision[precision > -1].mean())
    assert len(set(expected)) > 4
    assert [results[name] for name in NAMES] == pytest.approx(expected)
    assert [results[name] for name in ("AP50", "AP75")] == pytest.approx([expected[0], expected[5]])


def test_annotations_of_an_earlier_run_are_not_used(request, tmp_path):
    """detectron2 writes records without a file to one, and keeps it in OUTPUT_DIR."""
    name = "without_a_file"
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    for width in (10, 20):
        entry = dict(bbox=[1, 2, width, 9], bbox_mode=BoxMode.XYWH_ABS, category_id=0)
        record = dict(file_name="a.jpg", image_id=1, width=50, height=40, annotations=[entry])
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda record=record: [record])
        MetadataCatalog.get(name).set(thing_classes=["x"])
        COCOThresholdEvaluator(name, output_dir=str(tmp_path))
        written = json.loads((tmp_path / f"{name}_coco_format.json").read_text())
        assert written["annotations"][0]["bbox"] == [1, 2, width, 9]
