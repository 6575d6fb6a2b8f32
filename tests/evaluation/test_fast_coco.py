"""Evaluation with faster-coco-eval: where it is used, and that the results stay what they are."""

import importlib.util
import logging
import sys

import numpy as np
import pytest
import torch
from detectron2.evaluation import coco_evaluation

from dcn_projects.evaluation import COCOThresholdEvaluator

from .coco_files import feed, make_content, make_instances

# What the evaluators call of it, with the evaluation of pycocotools behind it.
STAND_IN = """
from pycocotools.cocoeval import COCOeval

used = []

class COCOeval_faster(COCOeval):
    def __init__(self, truth, found, iou_type, print_function):
        super().__init__(truth, found, iou_type)
        used.append(iou_type)

    def summarize(self):
        limit, self.params.maxDets[2] = self.params.maxDets[2], 100
        super().summarize()
        self.params.maxDets[2] = limit
"""


@pytest.fixture
def used(tmp_path, monkeypatch):
    """The tasks that are evaluated with a module that stands for faster-coco-eval."""
    folder = tmp_path / "stand_in"
    folder.mkdir()
    (folder / "faster_coco_eval.py").write_text(STAND_IN)
    monkeypatch.delitem(sys.modules, "faster_coco_eval", raising=False)
    monkeypatch.syspath_prepend(folder)
    import faster_coco_eval

    yield faster_coco_eval.used
    monkeypatch.delitem(sys.modules, "faster_coco_eval")


def some_content(seed=0):
    """Objects of two classes in four images, some of them crowds; what is found of them."""
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 100, (30, 2)), rng.integers(5, 90, (30, 2))
    boxes = np.hstack((corners, sides)).tolist()
    content = make_content([(i % 4 + 1, i % 2 + 1, box) for i, box in enumerate(boxes)], 2, 4)
    found = {image: [] for image in (1, 2, 3, 4)}
    for entry in content["annotations"]:
        entry["iscrowd"] = int(rng.random() < 0.1)
        for _ in range(rng.integers(3)):
            box = [int(x) for x in np.maximum(entry["bbox"] + rng.integers(-5, 6, 4), 1)]
            found[entry["image_id"]].append((rng.integers(2), rng.integers(1, 9) / 10, box))
    return content, found


def results(name, found, folder, **options):
    return feed(
        COCOThresholdEvaluator(name, output_dir=str(folder), **options), found, masks=True
    ).evaluate()


@pytest.mark.parametrize("limit", [100, 150])
def test_boxes_and_masks(limit, used, register_coco, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    content, found = some_content()
    originals = coco_evaluation.COCOeval_opt, coco_evaluation.COCOevalMaxDets
    results(register_coco(content), found, tmp_path, max_dets_per_image=limit)
    assert set(used) == {"bbox", "segm"}
    assert "Boxes and masks are evaluated with faster-coco-eval." in caplog.messages
    assert (coco_evaluation.COCOeval_opt, coco_evaluation.COCOevalMaxDets) == originals


def test_what_it_cannot_evaluate(used, register_coco, tmp_path):
    """Keypoints, and images whose ids are texts."""
    content, found = some_content()
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"
    found = {f"image {image}": entries for image, entries in found.items()}
    assert results(register_coco(content), found, tmp_path)["bbox"]["AP"] > 1
    assert not used
    content = make_content([(1, 1, (10, 10, 50, 50))])
    content["annotations"][0] |= {"keypoints": [20, 20, 2] * 17, "num_keypoints": 17}
    instances = make_instances([(0, 0.9, (10, 10, 50, 50))])
    instances.pred_keypoints = torch.tensor([[[20.5, 20.5, 1.0]] * 17])
    evaluator = COCOThresholdEvaluator(register_coco(content), output_dir=str(tmp_path))
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)
    assert used == ["bbox"]


@pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="no faster-coco-eval"
)
@pytest.mark.parametrize("limit", [3, 100, 150])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_results(seed, limit, register_coco, tmp_path, monkeypatch):
    content, found = some_content(seed)
    name = register_coco(content)
    fast = results(name, found, tmp_path, max_dets_per_image=limit)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    usual = results(name, found, tmp_path, max_dets_per_image=limit)
    assert usual["segm"]["AP"] > 1
    for task in ("bbox", "segm"):
        assert fast[task] == pytest.approx(usual[task], rel=0, abs=1e-10, nan_ok=True)
