"""The same objects and pixels, numbered in another order, have the same results."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances

from dcn_projects.data import read_labels, read_voc_objects
from dcn_projects.evaluation import (
    COCOThresholdEvaluator,
    InClassOrder,
    PascalVOCThresholdEvaluator,
    SemSegIoUEvaluator,
)

from .coco_files import feed, make_content
from .pixel_files import register_pixels
from .voc_files import feed_voc, write_folder

NAMES = ["c1", "c2", "c3"]
ORDER = [2, 0, 1]  # class of the model -> class of the data set: no exchange, but a circle
BOXES = [(10, 10, 40, 50), (60, 20, 80, 50), (20, 100, 70, 70), (120, 110, 60, 60)]
OBJECTS = [(i % 2 + 1, i % 3 + 1, BOXES[i % 4]) for i in range(6)]


def some_found():
    """Detections in the classes of the model, of which some are wrong, some inexact."""
    rng = np.random.default_rng(0)
    found = {1: [], 2: []}
    for i, (image, category, box) in enumerate(OBJECTS):
        box = (np.array(box) + rng.normal(0, 3, 4)).tolist()
        found[image] += [(category - 1, 0.9 - 0.05 * i, box), ((category + i) % 3, 0.3, box)]
    return found


class Keeps(DatasetEvaluator):
    """Keeps what it is given."""

    def reset(self):
        self.outputs = []

    def process(self, inputs, outputs):
        self.outputs += outputs

    def evaluate(self):
        return {"task": {"metric": 1.0}}


def passed_on(classes, output):
    wrapped = InClassOrder(Keeps(), classes)
    wrapped.reset()
    wrapped.process([{}], [output])
    assert wrapped.evaluate() == {"task": {"metric": 1.0}}
    return wrapped.evaluator.outputs[0]


def permuted(content):
    """The category of the data set's class ORDER[k] has the name and objects of the class k."""
    content = copy.deepcopy(content)
    names = [None] * 3
    for k, place in enumerate(ORDER):
        names[place] = NAMES[k]
    for category, name in zip(content["categories"], names):
        category["name"] = name
    for entry in content["annotations"]:
        entry["category_id"] = ORDER[entry["category_id"] - 1] + 1
    return content


def test_coco(register_coco, tmp_path):
    content = make_content(OBJECTS, num_classes=3)
    results = []
    for file, classes in ((content, None), (permuted(content), None), (permuted(content), ORDER)):
        evaluator = COCOThresholdEvaluator(register_coco(file), output_dir=str(tmp_path / "out"))
        evaluator = InClassOrder(evaluator, classes) if classes else evaluator
        results.append(feed(evaluator, some_found(), masks=True).evaluate())
    for task in ("bbox", "segm"):
        assert results[2][task] == pytest.approx(results[0][task], nan_ok=True)
        assert 10 < results[0][task]["AP"] < 90 and results[1][task]["AP"] < results[0][task]["AP"]
    assert len({results[0]["bbox"][f"AP-{name}"] for name in NAMES}) == 3


def test_detections_that_the_data_set_has_no_class_for(register_coco, tmp_path):
    """Its file has only c3 and c1, and a class that the model does not have."""
    content = make_content([o for o in OBJECTS if o[1] != 2], num_classes=3)
    numbers = {1: 3, 3: 1}
    for entry in content["annotations"]:
        entry["category_id"] = numbers[entry["category_id"]]
    content["categories"] = [{"id": k, "name": n} for k, n in ((1, "c3"), (2, "new"), (3, "c1"))]
    evaluator = COCOThresholdEvaluator(register_coco(content), output_dir=str(tmp_path / "out"))
    wrapped = feed(InClassOrder(evaluator, [2, -1, 0]), some_found()).evaluate()["bbox"]
    chosen = {
        image: [(2 - k, score, box) for k, score, box in found if k != 1]
        for image, found in some_found().items()
    }
    assert wrapped == pytest.approx(feed(evaluator, chosen).evaluate()["bbox"], nan_ok=True)
    assert 10 < wrapped["AP-c1"] and np.isnan(wrapped["AP-new"])


@pytest.fixture
def forget():
    names = []
    yield names.append
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_pascal_voc(tmp_path, forget):
    objects = {"a": [], "b": []}
    for image, category, (x, y, w, h) in OBJECTS:
        objects["ab"[image - 1]].append((NAMES[category - 1], 0, (x + 1, y + 1, x + w, y + h)))
    write_folder(tmp_path / "VOC", objects)
    detections = {
        "ab"[image - 1]: [(k, s, (x + 1, y + 1, x + w, y + h)) for k, s, (x, y, w, h) in found]
        for image, found in some_found().items()
    }
    results = []
    # The XML files have names: the order is that of the Metadata.
    for i, (names, classes) in enumerate([(NAMES, [0, 1, 2]), (["c2", "c3", "c1"], ORDER)]):
        name = f"voc_order_{i}"
        forget(name)
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            dirname=str(tmp_path / "VOC"), split="test", year=2012, thing_classes=names
        )
        evaluator = PascalVOCThresholdEvaluator(name, read_objects=read_voc_objects)
        if i == 1:
            assert feed_voc(evaluator, detections)["bbox"]["AP"] < results[0]["bbox"]["AP"]
        results.append(feed_voc(InClassOrder(evaluator, classes), detections))
    assert 10 < results[0]["bbox"]["AP"] < 90
    for task in results[0]:
        assert results[1][task] == pytest.approx(results[0][task])


@pytest.mark.parametrize("more", [0, 2], ids=["the same classes", "classes that nothing scores"])
def test_pixels(more, tmp_path, forget):
    rng = np.random.default_rng(0)
    annotated = rng.integers(0, 3, (8, 12))
    annotated[:2] = 255
    scores = torch.tensor(rng.random((3, 8, 12)))
    for k in range(3):
        scores[k][torch.tensor(annotated == k)] += 0.3
    labels = scores.argmax(dim=0)[::2, ::2]
    order = np.full(256, 255)
    order[:3] = [k + more if k else 0 for k in ORDER]
    results = []
    for i, (truth, classes) in enumerate([(annotated, None), (order[annotated], order[:3])]):
        name = f"pixel_order_{i}"
        forget(name)
        names = [f"new {k}" for k in range(3 + more * i)]
        for k, place in enumerate(range(3) if classes is None else classes):
            names[place] = NAMES[k]
        register_pixels(name, tmp_path / name, [truth], names)
        evaluator = SemSegIoUEvaluator(name, read_labels=read_labels)
        evaluator = evaluator if classes is None else InClassOrder(evaluator, classes.tolist())
        evaluator.reset()
        output = {"sem_seg": scores, "labels": labels}
        evaluator.process([{"file_name": "folder/0.jpg"}], [output])
        results.append(evaluator.evaluate())
    assert results[0].keys() == {"sem_seg", "sem_seg_input_size"}
    for protocol, expected in results[0].items():
        assert 10 < expected["mIoU"] < 90
        found = results[1][protocol]
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        assert len({expected[f"IoU-{name}"] for name in NAMES}) == 3


def test_the_outputs_of_the_caller_stay(tmp_path):
    instances = Instances((20, 30), pred_boxes=Boxes(torch.rand(4, 4)), scores=torch.rand(4))
    instances.pred_classes = torch.tensor([0, 1, 2, 1])
    instances.pred_masks = torch.rand(4, 20, 30) > 0.5
    output = {"instances": instances, "sem_seg": torch.rand(54, 20, 30), "panoptic_seg": "any"}
    before = copy.deepcopy(output)
    found = passed_on([2, -1, 0], output)
    assert found["instances"].pred_classes.tolist() == [2, 0]
    assert found["instances"].scores.tolist() == instances.scores[[0, 2]].tolist()
    assert torch.equal(found["instances"].pred_masks, instances.pred_masks[[0, 2]])
    assert found["sem_seg"] is output["sem_seg"] and found["panoptic_seg"] == "any"  # PanopticFPN
    found["instances"].pred_boxes.tensor.zero_()  # as an evaluator may do
    assert output.keys() == before.keys()
    for field, value in before["instances"].get_fields().items():
        now = output["instances"].get(field)
        assert torch.equal(getattr(now, "tensor", now), getattr(value, "tensor", value)), field


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_scores_of_pixels(dtype):
    scores = torch.tensor([[[-5, 1]], [[-3, 2]]], dtype=dtype)
    output = {"sem_seg": scores, "labels": torch.tensor([[0, 1]])}
    found = passed_on([3, 1], output)
    assert found["sem_seg"].dtype == dtype and found["sem_seg"].argmax(dim=0).tolist() == [[1, 1]]
    assert found["sem_seg"][[3, 1]].tolist() == scores.tolist()
    assert found["labels"].tolist() == [[3, 1]] and output["labels"].tolist() == [[0, 1]]


def test_nothing_detected_and_proposals():
    nothing = Instances((20, 30), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
    assert len(passed_on([-1, 0], {"instances": nothing})["instances"]) == 0
    proposals = {"proposals": Instances((20, 30))}
    assert passed_on([1, 0], proposals)["proposals"] is proposals["proposals"]


def one_object(k):
    return {"instances": Instances((9, 9), pred_classes=torch.tensor([k]), scores=torch.ones(1))}


@pytest.mark.parametrize(
    "classes, output, message",
    [
        ([0, 0], {}, r"must differ.*got \[0, 0\]"),
        ([0, -2], {}, r"-1; got \[0, -2\]"),
        ([1, 0], one_object(2), "predicts the class 2, but the order names 2 classes"),
        ([1, 0], {"sem_seg": torch.rand(3, 4, 4)}, "scores 3 classes of pixels, but .* names 2"),
        ([0, -1, 1], {"sem_seg": torch.rand(3, 4, 4)}, r"does not have the classes \[1\]"),
    ],
)
def test_mistakes(classes, output, message):
    with pytest.raises(ValueError, match=message) as e:
        passed_on(classes, output)
    assert "\n" not in str(e.value)
