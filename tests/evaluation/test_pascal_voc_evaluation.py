"""Hand-computed precision and recall, and detectron2's own evaluator, on small VOC folders."""

import functools
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm

from dcn_projects import evaluation
from dcn_projects.data import read_voc_objects
from dcn_projects.data.datasets.pascal_voc import load_voc
from dcn_projects.data.datasets.warped_digits import make_dataset
from tests.voc_data import annotation_xml, object_xml, write_voc

from .voc_files import feed_voc as feed
from .voc_files import write_folder

PascalVOCThresholdEvaluator = functools.partial(
    evaluation.PascalVOCThresholdEvaluator, read_objects=read_voc_objects
)
CLASSES = ["cat", "dog"]
BOX, FAR = (11, 11, 20, 20), (51, 51, 60, 60)  # 10 x 10 pixels, inclusive and 1-based


@pytest.fixture
def register(tmp_path):
    names = []

    def register(folder, year, classes=CLASSES, split="test"):
        names.append(f"voc_{len(names)}_for_{tmp_path.name}")
        DatasetCatalog.register(names[-1], list)
        MetadataCatalog.get(names[-1]).set(
            dirname=str(folder), split=split, year=year, thing_classes=list(classes)
        )
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def moved(box, x):
    return (box[0] + x, box[1], box[2] + x, box[3])


# name: (objects, detections, AP50 of class 0 by 11 points, by area)
CASES = {
    # Precision 1 up to recall 1/2; then wrong, then 2/3 at recall 1.
    "one of three wrong": (
        {"a": [("cat", 0, BOX), ("cat", 0, FAR)]},
        {"a": [(0, 0.9, BOX), (0, 0.8, (1, 80, 9, 90)), (0, 0.7, FAR)]},
        (6 * 1 + 5 * 2 / 3) / 11,
        0.5 * 1 + 0.5 * 2 / 3,
    ),
    # Recall stops at 1/2: 6 of the 11 recalls are reached.
    "one of two missed": (
        {"a": [("cat", 0, BOX), ("cat", 0, FAR)]}, {"a": [(0, 0.9, BOX)]}, 6 / 11, 0.5
    ),
    "duplicates": (
        {"a": [("cat", 0, BOX), ("cat", 0, FAR)]},
        {"a": [(0, 0.9, BOX), (0, 0.8, moved(BOX, 1)), (0, 0.7, FAR)]},
        (6 * 1 + 5 * 2 / 3) / 11,
        0.5 * 1 + 0.5 * 2 / 3,
    ),
    "the surest duplicate counts, not the best": (
        {"a": [("cat", 0, BOX)]}, {"a": [(0, 0.8, BOX), (0, 0.9, moved(BOX, 1))]}, 1, 1
    ),
    "difficult objects are neither right nor wrong": (
        {"a": [("cat", 1, BOX), ("cat", 0, FAR)]},
        {"a": [(0, 0.9, BOX), (0, 0.8, BOX), (0, 0.7, FAR)]},
        1,
        1,
    ),
    "too far from a difficult object": (
        {"a": [("cat", 1, BOX), ("cat", 0, FAR)]},
        {"a": [(0, 0.9, moved(BOX, 8)), (0, 0.7, FAR)]},
        0.5,
        0.5,
    ),
    # 10 x 10 pixels moved by 2 share 80 of 120: IoU 2/3, which without the +1 were 63 of 99.
    "inclusive corners": (
        {"a": [("cat", 0, BOX)]}, {"a": [(0, 0.9, moved(BOX, 2))]}, 1, 1
    ),
    # 30 wide, moved by 10: 20 of 40 columns. At the threshold is not above it.
    "IoU of exactly one half": (
        {"a": [("cat", 0, (11, 11, 40, 20))]}, {"a": [(0, 0.9, (21, 11, 50, 20))]}, 0, 0
    ),
    "ties": (  # as after rounding to 3 decimals; both are right, so that their order is all one
        {"a": [("cat", 0, BOX)], "b": [("cat", 0, BOX)], "c": []},
        {"a": [(0, 0.9004, BOX)], "b": [(0, 0.8996, BOX)], "c": [(0, 0.5, BOX)]},
        1,
        1,
    ),
    "the other class, the other image": (
        {"a": [("cat", 0, BOX), ("dog", 0, FAR)], "b": [("cat", 0, BOX)]},
        {"a": [(0, 0.9, FAR), (1, 0.8, BOX), (0, 0.7, BOX)], "b": []},
        (6 * 0.5) / 11,
        0.25,
    ),
    "no detections": ({"a": [("cat", 0, BOX)]}, {"a": []}, 0, 0),
    "image without objects": (
        {"a": [("cat", 0, BOX)], "b": []}, {"a": [(0, 0.9, BOX)], "b": [(0, 0.95, BOX)]}, 0.5, 0.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("case", CASES)
def test_by_hand(case, year, register, tmp_path):
    objects, detections, points, area = CASES[case]
    write_folder(tmp_path / "VOC", objects)
    results = feed(PascalVOCThresholdEvaluator(register(tmp_path / "VOC", year)), detections)
    other = "bbox_area" if year == 2007 else "bbox_11_points"
    expected = dict(zip(("bbox", other), (points, area) if year == 2007 else (area, points)))
    assert {task: r["AP50-cat"] for task, r in results.items()} == pytest.approx(
        {task: 100 * ap for task, ap in expected.items()}
    )


def test_thresholds(register, tmp_path):
    """IoU 80 / 120: found at 0.50 to 0.65, so that AP is 4 of 10, and AP70 is 0."""
    write_folder(tmp_path / "VOC", {"a": [("cat", 0, BOX), ("dog", 0, FAR)]})
    detections = {"a": [(0, 0.9, moved(BOX, 2)), (1, 0.9, FAR)]}
    results = feed(PascalVOCThresholdEvaluator(register(tmp_path / "VOC", 2007)), detections)
    for result in results.values():
        assert [result[f"AP{t}"] for t in range(50, 100, 5)] == pytest.approx([100] * 4 + [50] * 6)
        assert result["AP"] == pytest.approx(70)
        assert (result["AP70-cat"], result["AP70-dog"]) == pytest.approx((0, 100))


def test_ties_of_right_and_wrong(register, tmp_path):
    """The order is detectron2's."""
    write_folder(tmp_path / "VOC", {"a": [("cat", 0, BOX)]})
    name = register(tmp_path / "VOC", 2007, ["cat"])
    for detections in ([(0, 0.9, BOX), (0, 0.9, FAR)], [(0, 0.9, FAR), (0, 0.9, BOX)]):
        ours = feed(PascalVOCThresholdEvaluator(name), {"a": detections})["bbox"]["AP50"]
        theirs = feed(PascalVOCDetectionEvaluator(name), {"a": detections})["bbox"]["AP50"]
        assert ours == pytest.approx(theirs) and round(ours) in (50, 100)


@pytest.mark.parametrize("year", [2007, 2012])
def test_class_without_objects(year, register, tmp_path):
    """It has no AP and does not count, whether or not there are detections; nor does a class all
    of whose objects are difficult."""
    write_folder(tmp_path / "VOC", {"a": [("cat", 0, BOX), ("cow", 1, FAR)]})
    name = register(tmp_path / "VOC", year, ["cat", "dog", "cow", "fox"])
    detections = {"a": [(0, 0.9, BOX), (1, 0.9, FAR), (2, 0.9, FAR)]}
    for result in feed(PascalVOCThresholdEvaluator(name), detections).values():
        assert result["AP50"] == result["AP"] == pytest.approx(100)
        assert all(np.isnan(result[f"AP50-{name}"]) for name in ("dog", "cow", "fox"))


def test_processes_are_gathered(register, tmp_path, monkeypatch):
    write_folder(
        tmp_path / "VOC", {"a": [("cat", 0, BOX)], "b": [("cat", 0, FAR), ("dog", 0, BOX)]}
    )
    name = register(tmp_path / "VOC", 2007)
    first, second = (PascalVOCThresholdEvaluator(name) for _ in range(2))
    halves = {"a": [(0, 0.9, BOX)]}, {"b": [(0, 0.8, FAR), (1, 0.8, BOX)]}
    assert round(feed(first, halves[0])["bbox"]["AP50-cat"]) == 55
    feed(second, halves[1])
    parts = [(part._predictions, part.sizes) for part in (first, second)]
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: parts)
    assert first.evaluate()["bbox"]["AP50"] == pytest.approx(100)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert second.evaluate() is None


def test_writes_detections(register, tmp_path):
    write_folder(tmp_path / "VOC", {"a": [("cat", 0, BOX)]})
    evaluator = PascalVOCThresholdEvaluator(register(tmp_path / "VOC", 2007), str(tmp_path / "out"))
    feed(evaluator, {"a": [(1, 0.12345, BOX)]})
    written = json.loads((tmp_path / "out/voc_instances_results.json").read_text())
    assert written == [{"image_id": "a", "category": "dog", "bbox": list(BOX), "score": 0.123}]


def test_perfect_detections_in_a_flat_folder(register, tmp_path):
    """PNG files, names with spaces, and no list. A difficult object need not be found."""
    objects = {
        "my cat": [("cat", 0, BOX)],
        "a cat and a dog 2": [("cat", 0, FAR), ("dog", 0, (1, 2.5, 30, 40))],
        "hidden": [("dog", 1, BOX)],
        "nothing 1": [],
    }
    images = {
        name: annotation_xml(*(object_xml(c, box, hard) for c, hard, box in found), size=(100, 100))
        for name, found in objects.items()
    }
    places = dict(annotations="annotations", pictures="images", suffix=".png", list_file="")
    write_voc(tmp_path, images, size=(100, 100), **places)
    name = register(tmp_path, 2012, split="")
    detections = {
        record["image_id"]: [
            (a["category_id"], 0.9, np.add(a["bbox"], [1, 1, 0, 0]).tolist())
            for a in record["annotations"]
        ]
        for record in load_voc(str(tmp_path), "", CLASSES, difficult=False)
    }
    assert [len(found) for found in detections.values()] == [2, 0, 1, 0]
    evaluator = PascalVOCThresholdEvaluator(name, str(tmp_path / "out"))
    for result in feed(evaluator, detections).values():
        expected = ("AP", "AP50", "AP75", "AP95", "AP70-cat", "AP70-dog")
        assert [result[key] for key in expected] == pytest.approx([100] * 6)
    written = json.loads((tmp_path / "out/voc_instances_results.json").read_text())
    assert [w["image_id"] for w in written] == ["a cat and a dog 2", "my cat", "a cat and a dog 2"]
    assert written[-1] == {
        "image_id": "a cat and a dog 2",
        "category": "dog",
        "bbox": [1, 2.5, 30, 40],
        "score": 0.9,
    }


def test_nothing_detected_in_a_flat_folder(register, tmp_path):
    """0 where there are objects, NaN where there are none."""
    write_voc(tmp_path, {"my cat": annotation_xml(object_xml())}, list_file="")
    for result in feed(
        PascalVOCThresholdEvaluator(register(tmp_path, 2007, split="")), {"my cat": []}
    ).values():
        assert result["AP"] == result["AP50-cat"] == 0
        assert np.isnan(result["AP50-dog"])


def test_what_is_damaged_during_training_is_named(register, tmp_path):
    write_voc(tmp_path, {"a": annotation_xml(object_xml(difficult="maybe"))})
    name = register(tmp_path, 2007, split="train")
    line = "a.xml: an object of the class 'cat' has 'maybe' as difficult, expected 0 or 1"
    with pytest.raises(OSError, match=line):
        feed(PascalVOCThresholdEvaluator(name), {"a": []})


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits_voc")
    make_dataset(str(folder), "voc", size=96, count_train=2, count_test=60)
    return folder / "VOCdevkit/VOC2012"


@pytest.mark.parametrize("year", [2007, 2012])
def test_agrees_with_detectron2(year, digits, register):
    """On all objects, moved a little, and as many wrong boxes; scores repeat."""
    rng = np.random.default_rng(year)
    ids = (digits / "ImageSets/Main/test.txt").read_text().split()
    detections = {}
    for image_id in ids:
        detections[image_id] = found = []
        for element in ET.parse(digits / f"Annotations/{image_id}.xml").findall("object"):
            box = [float(element.findtext(f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax")]
            label = int(element.findtext("name"))
            for _ in range(2):
                found.append((label, rng.random(), np.add(box, rng.normal(0, 3, 4)).tolist()))
            found.append((int(rng.integers(10)), rng.random(), box))
    name = register(digits, year, "0123456789")
    theirs = feed(PascalVOCDetectionEvaluator(name), detections)["bbox"]
    ours = feed(PascalVOCThresholdEvaluator(name), detections)["bbox"]
    assert 5 < theirs["AP"] < theirs["AP50"] < 95
    assert {k: ours[k] for k in theirs} == pytest.approx(theirs, rel=1e-9)
