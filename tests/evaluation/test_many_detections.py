"""Images with more than 100 objects."""

import functools
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import BoxMode
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.engine import Task, Trainer, register_task, task_of
from dcn_projects.engine.tasks import TASKS
from dcn_projects.evaluation import COCOThresholdEvaluator
from dcn_projects.modeling import MultiScaleTTA
from tests.modeling.narrow_models import make_rfcn_cfg

from .coco_files import SIZE, feed, make_content, make_instances, perfect


def many(num_objects):
    """Objects of two classes in rows, in one image; two thirds are of the first class."""
    return make_content(
        [
            (1, 1 + (i % 3 == 2), (4 + 12 * (i % 16), 4 + 12 * (i // 16), 10, 10))
            for i in range(num_objects)
        ]
    )


def one_class(num_objects):
    content = many(num_objects)
    for entry in content["annotations"]:
        entry["category_id"] = 1
    return content


def make_cfg(folder, limit):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.OUTPUT_DIR, cfg.TEST.DETECTIONS_PER_IMAGE = str(folder), limit
    return cfg


@pytest.mark.parametrize("limit, ap", [(100, 66.337), (150, 100), (300, 100), (-1, 100)])
def test_150_objects(limit, ap, register_coco, tmp_path):
    """At 100 detections the recall is 2/3: the precision is 1 at 67 of 101 recalls."""
    content = one_class(150)
    evaluator = Trainer.build_evaluator(make_cfg(tmp_path, limit), register_coco(content))
    results = feed(evaluator, perfect(content), masks=True).evaluate()
    for task in ("bbox", "segm"):
        found = results[task]
        metrics = ["AP", "AP-c1", "APs", *(f"AP{t}" for t in range(50, 100, 5))]
        assert [found[m] for m in metrics] == pytest.approx([ap] * len(metrics), abs=1e-3)


@pytest.mark.parametrize("limit", [5, 100, 101, 150, -1])
@pytest.mark.parametrize("num_objects", [60, 150])
def test_up_to_100_detections_of_a_class_nothing_changes(
    num_objects, limit, register_coco, tmp_path
):
    content, found = many(num_objects), None
    found = perfect(content)
    for i, (k, score, box) in enumerate(found[1]):
        found[1][i] = ((k + (i % 7 == 0)) % 2, score, [box[0] + 0.3 * (i % 9), *box[1:]])
    found[1] = found[1][:100]
    name = register_coco(content)
    theirs = feed(COCOEvaluator(name, output_dir=str(tmp_path)), found).evaluate()["bbox"]
    evaluator = Trainer.build_evaluator(make_cfg(tmp_path, limit), name)
    ours = feed(evaluator, found).evaluate()["bbox"]
    assert 5 < theirs["AP"] < 95
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=0, abs=0, nan_ok=True)


class Own(DatasetEvaluator):
    """As users may have written it."""

    def __init__(self, dataset_name, output_dir):
        self.given = {}


class OwnWithLimit(Own):
    def __init__(self, dataset_name, output_dir=None, max_dets_per_image=None):
        self.given = {"max_dets_per_image": max_dets_per_image}


@pytest.mark.parametrize("limit", [100, 150])
def test_evaluators_of_users(limit, register_coco, tmp_path, request):
    rows = len(TASKS)
    request.addfinalizer(lambda: TASKS.__delitem__(slice(rows, None)))
    cfg, name = make_cfg(tmp_path, limit), register_coco(many(3))
    given = {}
    for title, evaluator in {
        "old": Own,
        "function": lambda name, output_dir: Own(name, output_dir),
        "with": OwnWithLimit,
        "fixed": functools.partial(OwnWithLimit, max_dets_per_image=120),
    }.items():
        kind = task_of(cfg).architectures
        register_task(Task(architectures=kind, num_classes="X", evaluators={"coco": evaluator}))
        given[title] = Trainer.build_evaluator(cfg, name).given
    passed = {"max_dets_per_image": 150 if limit == 150 else None}
    fixed = {"max_dets_per_image": 120}
    assert given == {"old": {}, "function": {}, "with": passed, "fixed": fixed}


def test_keypoints_have_a_limit_of_their_own(register_coco, tmp_path):
    content = make_content([(1, 1, (10, 10, 50, 50))])
    content["annotations"][0] |= {"keypoints": [20, 20, 2] * 17, "num_keypoints": 17}
    instances = make_instances([(0, 0.9, (10, 10, 50, 50))])
    instances.pred_keypoints = torch.tensor([[[20.5, 20.5, 1.0]] * 17])
    evaluator = COCOThresholdEvaluator(
        register_coco(content), output_dir=str(tmp_path), max_dets_per_image=150
    )
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["keypoints"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_keypoints_of_other_objects(register_coco, tmp_path):
    """The config says how precise each of them is."""
    content = make_content([(1, 1, (10, 10, 50, 50))])
    content["annotations"][0] |= {"keypoints": [20, 20, 2] * 3, "num_keypoints": 3}
    instances = make_instances([(0, 0.9, (10, 10, 50, 50))])
    instances.pred_keypoints = torch.tensor([[[20.5, 20.5, 1.0]] * 2 + [[25.5, 20.5, 1.0]]])
    cfg, name = make_cfg(tmp_path, 100), register_coco(content)
    cfg.MODEL.KEYPOINT_ON = True
    aps = {}
    for sigma in (0.01, 10.0):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05, 0.05, sigma]
        evaluator = Trainer.build_evaluator(cfg, name)
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
        aps[sigma] = evaluator.evaluate()["keypoints"]["AP"]
    assert aps[10.0] == pytest.approx(100) and aps[0.01] < 50


def test_keypoints_of_records_stay_where_they_are(request, tmp_path):
    """detectron2 moves them by half a pixel when it writes records that are in no file."""
    annotation = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    annotation["keypoints"] = [2.5, 3.5, 2]
    record = {"file_name": "a.jpg", "image_id": 1, "width": 20, "height": 20}
    records = [record | {"annotations": [annotation]}, record | {"image_id": 2}]
    name = "keypoints_in_memory"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["cat"], evaluator_type="coco")
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    for _ in range(2):
        COCOThresholdEvaluator(name, output_dir=str(tmp_path))
        assert annotation["keypoints"] == [2.5, 3.5, 2]
        written = json.loads((tmp_path / f"{name}_coco_format.json").read_text())
        assert written["annotations"][0]["keypoints"] == [2, 3, 2]


def test_with_augmentation(register_coco, tmp_path, monkeypatch):
    """From the config to the results, with the boxes of several views."""
    content = one_class(150)
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "1.jpg")
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "2.jpg")
    cfg = make_rfcn_cfg(deform=False)
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (register_coco(content),), str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MIN_SIZE_TEST = 0, 32
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.AUG.ENABLED = 150, True
    cfg.TEST.AUG.SCALES, cfg.TEST.AUG.FLIP = [[32, 32]], True
    images = iter((1, 2))

    def boxes_of_views(self, augmented_inputs, tfms):
        found = make_instances(perfect(content)[next(images)] * len(tfms))
        return found.pred_boxes.tensor, found.scores, found.pred_classes

    monkeypatch.setattr(MultiScaleTTA, "_get_augmented_boxes", boxes_of_views)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert next(images, None) is None
    assert (results["bbox"]["AP"], results["bbox"]["AP95"]) == pytest.approx((100, 100))
