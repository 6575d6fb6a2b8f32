"""Nothing is detected: all that should have been found has the result 0."""

import math

import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from dcn_projects.engine import Trainer
from dcn_projects.evaluation import COCOThresholdEvaluator
from tests.modeling.narrow_models import NARROW, load

from .coco_files import SIZE, feed, make_content, make_instances, perfect

OBJECTS = [(1, 1, (10, 10, 20, 20)), (2, 2, (50, 50, 60, 80))]  # small, medium; none is large
NOTHING = {1: [], 2: []}
WARNING = "Nothing was detected on "


def make_evaluator(register, tmp_path, content=None, **options):
    content = content or make_content(OBJECTS, num_classes=3)
    return COCOThresholdEvaluator(register(content), output_dir=str(tmp_path / "out"), **options)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if WARNING in r.getMessage()]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("limit", [None, 150])
def test_no_detections(limit, masks, register_coco, tmp_path, caplog):
    evaluator = make_evaluator(register_coco, tmp_path, max_dets_per_image=limit)
    metrics = feed(evaluator, perfect(make_content(OBJECTS)), masks).evaluate()
    assert not warnings(caplog)
    results = feed(evaluator, NOTHING, masks).evaluate()
    assert results.keys() == metrics.keys() == ({"bbox", "segm"} if masks else {"bbox"})
    for task, found in results.items():
        assert found.keys() == metrics[task].keys()
        without = {name for name, value in found.items() if math.isnan(value)}
        assert without == {"APl", "AP-c3"}
        assert {found[name] for name in found.keys() - without} == {0.0}
    (line,) = warnings(caplog)
    assert evaluator.dataset_name in line and "\n" not in line
    assert (tmp_path / "out/coco_instances_results.json").read_text() == "[]"


def test_no_objects_either(register_coco, tmp_path):
    """One class, no object: nothing has a result."""
    evaluator = make_evaluator(register_coco, tmp_path, make_content([], num_classes=1))
    results = feed(evaluator, NOTHING).evaluate()["bbox"]
    assert "AP95" in results and all(map(math.isnan, results.values()))


def test_tasks_that_are_asked_for(register_coco, tmp_path):
    evaluator = make_evaluator(register_coco, tmp_path, tasks=("bbox",))
    assert feed(evaluator, NOTHING, masks=True).evaluate().keys() == {"bbox"}


def test_on_some_of_the_images(register_coco, tmp_path):
    """The object of the second image does not count."""
    evaluator = make_evaluator(register_coco, tmp_path)
    results = feed(evaluator, NOTHING).evaluate(img_ids=[1])["bbox"]
    assert (results["AP"], results["APs"]) == (0, 0) and math.isnan(results["APm"])


def test_on_one_of_two_data_sets(register_coco, tmp_path, caplog):
    first, second = (make_evaluator(register_coco, tmp_path) for _ in range(2))
    content = make_content(OBJECTS)
    assert feed(first, perfect(content)).evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert feed(second, NOTHING).evaluate()["bbox"]["AP"] == 0
    (line,) = warnings(caplog)
    assert second.dataset_name in line


def test_masks_without_pixels(register_coco, tmp_path, caplog):
    evaluator = make_evaluator(register_coco, tmp_path)
    evaluator.reset()
    for image, found in perfect(make_content(OBJECTS)).items():
        instances = make_instances(found, masks=True)
        instances.pred_masks[:] = False
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == 0
    assert not warnings(caplog)


def test_keypoints(register_coco, tmp_path):
    content = make_content(OBJECTS[:1])
    content["annotations"][0] |= {"keypoints": [20, 20, 2] * 17, "num_keypoints": 17}
    evaluator = make_evaluator(register_coco, tmp_path, content)
    instances = make_instances([])
    instances.pred_keypoints = torch.zeros(0, 17, 3)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert (results["bbox"]["AP"], results["keypoints"]["AP"]) == (0, 0)


@pytest.mark.parametrize("found_by", [None, 0, 1])
def test_several_processes(found_by, register_coco, tmp_path, monkeypatch, caplog):
    """Each has one of the two images."""
    content = make_content(OBJECTS)
    name = register_coco(content)
    parts, everything = [], perfect(content)
    for rank in range(2):
        part = COCOThresholdEvaluator(name, output_dir=str(tmp_path / "out"))
        image = rank + 1
        parts.append(feed(part, {image: everything[image] if rank == found_by else []}, masks=True))

    def gather(data, dst=0):
        return [
            part._predictions if data is parts[0]._predictions else part.unknown for part in parts
        ]

    monkeypatch.setattr(comm, "gather", gather)
    results = parts[0].evaluate()
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx(
        [0 if found_by is None else 50] * 2
    )
    assert len(warnings(caplog)) == (found_by is None)
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() == {}
    assert len(warnings(caplog)) == (found_by is None)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_model_with_masks(augmented, register_coco, tmp_path):
    """An untrained one, for which no score is high enough."""
    for i in (1, 2):
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"{i}.jpg")
    cfg = load(
        "Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits",
        NARROW.replace("[16]", "[-1]").replace("NORM BN", "NORM GN").replace(" 8", " 32"),
        "MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.WIDTH_PER_GROUP 32",
        "MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 32",
        f"MODEL.ROI_HEADS.SCORE_THRESH_TEST 1.0 TEST.AUG.ENABLED {augmented}",
        "TEST.AUG.SCALES [[64,64]] INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0",
    )
    content = make_content(OBJECTS, num_classes=10)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (register_coco(content),)
    cfg.OUTPUT_DIR = str(tmp_path)
    results = Trainer.test(cfg, Trainer.build_model(cfg).eval())
    assert (results["bbox"]["AP"], results["segm"]["AP"]) == (0, 0)
