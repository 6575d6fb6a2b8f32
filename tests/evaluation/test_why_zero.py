"""Each reason of an AP or mIoU of zero is told when it is true, and only then."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from dcn_projects.data import read_labels, read_voc_objects
from dcn_projects.evaluation import (
    COCOThresholdEvaluator,
    PascalVOCThresholdEvaluator,
    SemSegIoUEvaluator,
)
from dcn_projects.evaluation.why_zero import tell_unknown

from .coco_files import SIZE, feed, make_content, make_instances, perfect, polygon
from .pixel_files import one_hot_scores, register_pixels
from .voc_files import feed_voc, write_folder

REASONS = {
    "no objects": r"^AP is nan on .* has no objects",
    "none to find": r"^AP is nan on .*: all \d+ objects of its classes in .* are (crow|diffic)",
    "no annotations": r"has no annotations: .* has no results, only detections",
    "images": r"images? are not in .*, such as .* is left out",
    "image_id": r"of \d+ objects in .* have an image_id that is the id of no image",
    "form": r"leave the image or have no size when they are read as",
    "shares": r"are between 0 and 1, but have to be in pixels",
    "size": r"they may be for images of another size",
    "classes": r"objects by half, but \d+ of them with another class",
    "unnamed": r"are of classes that the data set does not name",
    "scores": r"all scores are below 0.05, the highest is",
    "few": r"there are \d+ detections for \d+ objects: lower .*SCORE_THRESH_TEST",
    "nothing": r"^Nothing was detected on .*SCORE_THRESH_TEST.*MODEL.WEIGHTS",
    "elsewhere": r"detections overlap \d+ of \d+ objects by half: look",
    "masks": r"^AP of masks is .* objects are found by their boxes, and 0 of these by their masks",
    "empty masks": r"^AP of masks is .*: all \d+ detected masks are empty",
    "no pixel": r"^AP of masks is .*: the masks of \d+ of \d+ objects in .* have no pixel",
    "ignored": r"^mIoU is nan on .*: all pixels of the labels in .* have the ignored label 255",
    "one class": r"^mIoU is .*: every pixel is predicted as b, and \d other classes are annotated",
    "other pixels": r"^mIoU is .*: each class is mostly predicted as one other class",
}


@pytest.fixture
def told(caplog):
    """told() -> the reasons that were given since the last time, by their names above"""

    def told():
        lines = [
            r.getMessage()
            for r in caplog.records
            if r.name.startswith("dcn_projects.evaluation") and r.levelno >= logging.WARNING
        ]
        caplog.clear()
        assert not [line for line in lines if "\n" in line or not line.endswith(".")]
        names = [[n for n, words in REASONS.items() if re.search(words, line)] for line in lines]
        assert all(len(of_line) == 1 for of_line in names), lines
        told.lines = lines
        return [name for (name,) in names]

    return told


# COCO

# In the upper left, the middle, and the lower right of each of four images of 200 x 200
OBJECTS = [
    (image, 1 + (image + i) % 3, (x + 2 * image, y, w, h))
    for image in (1, 2, 3, 4)
    for i, (x, y, w, h) in enumerate([(4, 10, 40, 30), (70, 60, 50, 70), (120, 130, 60, 50)])
]


def content_with(change=lambda entry: None):
    """A file whose annotations are changed by a function."""
    content = make_content(OBJECTS, num_classes=3, num_images=4)
    for entry in content["annotations"]:
        change(entry)
    return content


def box_made_by(function):
    def change(entry):
        entry["bbox"] = function(*entry["bbox"])

    return change


def found_with(change=lambda k, score, box: (k, score, box)):
    """The right detections, each of them changed by a function."""
    return {
        image: [change(*detection) for detection in found]
        for image, found in perfect(content_with()).items()
    }


@pytest.fixture
def results_of(register_coco, tmp_path):
    def results_of(content, found, masks=False):
        name = register_coco(content)
        evaluator = COCOThresholdEvaluator(name, output_dir=str(tmp_path / "out"))
        return feed(evaluator, found, masks).evaluate()

    return results_of


def shares(x, y, w, h):
    return [x / SIZE, y / SIZE, w / SIZE, h / SIZE]


WRONG_FILES = {
    "crowds": ({"iscrowd": 1}, "none to find"),
    "ids of other images": ({"image_id": 77}, "image_id"),
    "ids that are texts": ({"image_id": "1"}, "image_id"),
    "corners": (box_made_by(lambda x, y, w, h: [x, y, x + w, y + h]), "form"),
    "shares": (box_made_by(shares), "shares"),
    "corners in shares": (box_made_by(lambda x, y, w, h: shares(x, y, x + w, y + h)), "shares"),
    "larger images": (box_made_by(lambda *box: [3 * a for a in box]), "size"),
    "smaller images": (box_made_by(lambda *box: [0.3 * a for a in box]), "size"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files(case, results_of, told):
    change, reason = WRONG_FILES[case]
    if isinstance(change, dict):
        content = content_with(lambda entry: entry.update(change))
    else:
        content = content_with(change)
    ap = results_of(content, found_with())["bbox"]["AP"]
    # Boxes that begin near the corner of the image are nearly the same in both forms.
    assert np.isnan(ap) if reason in ("none to find", "image_id") else ap < 1 or reason == "form"
    assert told() == [reason]
    assert ".json" in told.lines[0]


def test_what_a_line_says(results_of, told, tmp_path):
    content = content_with(box_made_by(lambda x, y, w, h: [x, y, x + w, y + h]))
    results_of(content, found_with())
    name = f"{tmp_path.name}_0"
    assert told() == ["form"]
    assert re.fullmatch(
        rf"AP is 6.4 on {name}: 6 of 12 boxes in {tmp_path}/{name}.json leave the image or have "
        r"no size when they are read as \[x, y, width, height\], as they have to be, and none when "
        r"read as \[x0, y0, x1, y1\]: write them as \[x, y, width, height\].",
        told.lines[0],
    )


def test_no_objects(results_of, told):
    content = make_content([], num_classes=3, num_images=4)
    assert np.isnan(results_of(content, found_with())["bbox"]["AP"])
    assert told() == ["no objects"]
    results_of(content, {1: []})
    assert told() == ["nothing", "no objects"]
    del content["annotations"]
    content_file = content | {"annotations": []}  # detectron2's loader reads them
    assert not results_of_changed(results_of, content_file, content)
    assert told() == ["no annotations"]


def results_of_changed(results_of, content, later):
    """Of a file that is written anew after it was registered."""
    written = []

    def rewrite(self, dataset_name, *args, **kwargs):
        written.append(dataset_name)
        path = MetadataCatalog.get(dataset_name).json_file
        with open(path, "w") as f:
            json.dump(later, f)
        return original(self, dataset_name, *args, **kwargs)

    original = COCOThresholdEvaluator.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(COCOThresholdEvaluator, "__init__", rewrite)
        results = results_of(content, found_with())
    assert written
    return results


def test_images_that_the_file_does_not_have(results_of, told):
    """All of them, and some."""
    results = results_of(content_with(), {str(i): f for i, f in found_with().items()}, masks=True)
    assert (results["bbox"]["AP"], results["segm"]["AP"]) == (0, 0)
    assert told() == ["images"] and "4 images" in told.lines[0] and "'1'" in told.lines[0]
    found = found_with()
    results = results_of(content_with(), found | {"5": found[1]})
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert told() == ["images"] and "1 image" in told.lines[0]


def test_a_file_that_is_registered_as_a_path(told, tmp_path):
    tell_unknown(["x"], tmp_path / "a.json")
    assert told() == ["images"] and "are not in " + str(tmp_path / "a.json") in told.lines[0]


def test_images_of_two_processes(register_coco, tmp_path, monkeypatch, told):
    name = register_coco(content_with())
    found = {i if i < 3 else f"other {i}": f for i, f in found_with().items()}
    halves = [
        {1: found[1], "other 3": found["other 3"]},
        {2: found[2], "other 4": found["other 4"]},
    ]
    parts = [
        feed(COCOThresholdEvaluator(name, output_dir=str(tmp_path / "out")), half)
        for half in halves
    ]

    def gather(data, dst=0):
        images = data is parts[0].unknown
        return [part.unknown if images else part._predictions for part in parts]

    monkeypatch.setattr(comm, "gather", gather)
    assert 40 < parts[0].evaluate()["bbox"]["AP"] < 60
    assert told() == ["images"] and "2 images" in told.lines[0]


def test_a_file_that_detectron2_made_of_other_records(tmp_path, told):
    records = [{"file_name": "1.jpg", "image_id": "old", "height": SIZE, "width": SIZE}]
    box = {"bbox": [5, 5, 50, 50], "bbox_mode": 1, "category_id": 0}
    records[0]["annotations"] = [box]
    name = f"records_of_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["c1"]
    evaluator = COCOThresholdEvaluator(name, output_dir=str(tmp_path))
    feed(evaluator, {"new": [(0, 0.9, (5, 5, 50, 50))]}).evaluate()
    assert told() == ["images"] and told.lines[0].endswith("another one: delete it.")
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def elsewhere(k, score, box):
    return k, score, [(box[0] + 90) % 140, (box[1] + 70) % 140, 20, 20]


WRONG_DETECTIONS = {
    "two exchanged": (lambda k, score, box: ((1, 0, 2)[k], score, box), None),
    "circle": (lambda k, score, box: ((k + 1) % 3, score, box), "classes"),
    "one class for all": (lambda k, score, box: (0, score, box), None),
    "elsewhere": (elsewhere, "elsewhere"),
    "elsewhere, unsure": (lambda *d: (d[0], 0.04 * d[1], elsewhere(*d)[2]), "scores"),
}


@pytest.mark.parametrize("case", WRONG_DETECTIONS)
def test_wrong_detections(case, results_of, told):
    """None: a third is right, so that AP is not low, and nothing is said."""
    change, reason = WRONG_DETECTIONS[case]
    ap = results_of(content_with(), found_with(change), masks=True)["bbox"]["AP"]
    assert (ap < 1) == (reason is not None)
    assert told() == ([reason] if reason else [])


def test_the_most_frequent_pair(results_of, told):
    found = found_with(lambda k, score, box: ((k + 1) % 3, score, box))
    for image in (1, 2, 3):
        found[image] = [detection for detection in found[image] if detection[0] != image % 2]
    results_of(content_with(), found)
    assert told() == ["classes"]
    # Of the 4 objects of each class two of c1 and one of c3 have no detection.
    assert "the surest detections overlap 9 of 12 objects by half, but 9 of them" in told.lines[0]
    assert "(4 times) detected as c3, annotated as c2: " in told.lines[0]


def test_few_detections(results_of, told):
    results_of(content_with(), {1: [(0, 0.9, (0, 0, 10, 10))], 2: []})
    assert told() == ["few"] and "1 detections for 12 objects" in told.lines[0]
    results_of(content_with(), {1: [(0, 0.01, (0, 0, 10, 10))]})
    assert told() == ["scores", "few"]
    results_of(content_with(), {1: [], 2: []})
    assert told() == ["nothing"]


def test_unsure_detections_and_a_wrong_file(results_of, told):
    """Two reasons may be true."""
    content = content_with(box_made_by(shares))
    results_of(content, found_with(lambda k, score, box: (k, 0.001, box)))
    assert told() == ["shares", "scores"]


def mask_reason(results_of, told, content):
    results = results_of(content, found_with(), masks=True)
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] < 1
    return told()


def test_annotated_masks_elsewhere(results_of, told):
    def change(entry):
        x, y, *_ = entry["bbox"]
        entry["segmentation"] = polygon(((x + 100) % 150, (y + 100) % 150, 10, 10))

    assert mask_reason(results_of, told, content_with(change)) == ["masks"]
    assert "12 objects are found by their boxes" in told.lines[0]


def test_annotated_masks_in_shares(results_of, told):
    def change(entry):
        entry["segmentation"] = polygon(shares(*entry["bbox"]))

    assert mask_reason(results_of, told, content_with(change)) == ["no pixel"]


def test_detected_masks_are_empty(register_coco, tmp_path, told):
    evaluator = COCOThresholdEvaluator(register_coco(content_with()), output_dir=str(tmp_path))
    evaluator.reset()
    for image, found in found_with().items():
        instances = make_instances(found, masks=True)
        instances.pred_masks[:] = False
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == 0
    assert told() == ["empty masks"]


HEALTHY = {
    "perfect": {},
    "unsure": {"found": lambda k, score, box: (k, 0.01 * score, box)},
    "inexact": {"found": lambda k, score, box: (k, score, [a + 3 for a in box])},
    "upper left": {"file": box_made_by(lambda *box: [0.3 * a for a in box])},
    "tiny": {"file": box_made_by(lambda x, y, w, h: [x, y, 0.5, 0.5])},
    "some crowds": {"file": lambda entry: entry.update(iscrowd=entry["image_id"] % 2)},
    "some lost": {"file": lambda entry: entry.update(image_id=entry["image_id"] + 2)},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy(case, results_of, told):
    change = HEALTHY[case]
    content = content_with(change.get("file", lambda entry: None))
    for entry in content["annotations"]:
        entry["segmentation"] = polygon(entry["bbox"])
    found = {
        image: [change.get("found", lambda *d: d)(*detection) for detection in some]
        for image, some in perfect(content).items()
    }
    results = results_of(content, found, masks=case != "tiny")
    assert results["bbox"]["AP"] > 30
    assert told() == []


# Pascal VOC

VOC_CLASSES = ["cat", "dog", "cow"]
VOC_BOXES = [(3, 5, 25, 30), (40, 30, 70, 60), (60, 65, 98, 97)]
VOC_OBJECTS = {
    image: [(VOC_CLASSES[(i + j) % 3], 0, box) for j, box in enumerate(VOC_BOXES)]
    for i, image in enumerate("abcd")
}


@pytest.fixture
def voc(tmp_path):
    """voc(change of an object, change of a detection) -> results"""
    names = []

    def voc(
        change=lambda *entry: entry,
        found=lambda *detection: detection,
        detections=None,
    ):
        folder = tmp_path / f"VOC_{len(names)}"
        objects = {i: [change(*o) for o in some] for i, some in VOC_OBJECTS.items()}
        write_folder(folder, objects)
        names.append(f"{tmp_path.name}_{len(names)}")
        DatasetCatalog.register(names[-1], list)
        MetadataCatalog.get(names[-1]).set(
            dirname=str(folder), split="test", year=2012, thing_classes=VOC_CLASSES
        )
        if detections is None:
            detections = {
                image: [
                    found(VOC_CLASSES.index(n), 0.9 - 0.1 * j, box)
                    for j, (n, _, box) in enumerate(some)
                ]
                for image, some in VOC_OBJECTS.items()
            }
        return feed_voc(
            PascalVOCThresholdEvaluator(names[-1], read_objects=read_voc_objects), detections
        )["bbox"]

    yield voc
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def voc_box(function):
    return lambda name, hard, box: (name, hard, tuple(function(*box)))


VOC_CASES = {
    "difficult": (dict(change=lambda n, hard, box: (n, 1, box)), "none to find"),
    "shares": (dict(change=voc_box(lambda *box: [x / 100 for x in box])), "shares"),
    "larger images": (dict(change=voc_box(lambda *box: [3 * x for x in box])), "size"),
    "smaller images": (dict(change=voc_box(lambda *box: [0.3 * x for x in box])), "size"),
    "circle": (dict(found=lambda k, score, box: ((k + 1) % 3, score, box)), "classes"),
    "unsure": (dict(found=lambda k, s, box: (k, 0.03 * s, (80, 2, 90, 9))), "scores"),
    "elsewhere": (dict(found=lambda k, score, box: (k, score, (80, 2, 90, 9))), "elsewhere"),
    "few": (dict(detections={"a": [(0, 0.9, (80, 2, 90, 9))], "b": []}), "few"),
    "nothing": (dict(detections={"a": [], "b": []}), "nothing"),
    "perfect": ({}, None),
    "perfect, unsure": (dict(found=lambda k, s, box: (k, 0.04 * s, box)), None),
    "one class": (dict(found=lambda k, s, box: (0, s, box)), None),
}


@pytest.mark.parametrize("case", VOC_CASES)
def test_pascal_voc(case, voc, told):
    changes, reason = VOC_CASES[case]
    ap = voc(**changes)["AP"]
    assert np.isnan(ap) if reason == "none to find" else (ap < 1) == bool(reason)
    assert told() == ([reason] if reason else [])


def test_pascal_voc_without_objects(voc, told):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.VOC_OBJECTS", {"a": [], "b": []})
        assert np.isnan(voc(detections={"a": [(0, 0.9, (1, 1, 9, 9))]})["AP"])
    assert told() == ["no objects"]


def test_pascal_voc_images_that_are_not_in_the_list(voc, told):
    assert voc(detections={"x": [(0, 0.9, VOC_BOXES[0])]})["AP"] == 0
    assert told() == ["images"] and "VOC_0" in told.lines[0] and "'x'" in told.lines[0]


# Pixels


@pytest.fixture
def pixels(tmp_path):
    """pixels(annotated, predicted), (H, W) each -> results"""
    names = []

    def pixels(annotated, predicted, classes="abc"):
        names.append(f"{tmp_path.name}_{len(names)}")
        register_pixels(names[-1], tmp_path / names[-1], [annotated], classes)
        evaluator = SemSegIoUEvaluator(names[-1], read_labels=read_labels)
        evaluator.reset()
        output = {"sem_seg": one_hot_scores(predicted, len(classes))}
        evaluator.process([{"file_name": "folder/0.jpg"}], [output])
        return evaluator.evaluate()["sem_seg"]

    yield pixels
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "annotated, predicted, reason",
    [
        ([[255, 255]], [[0, 1]], "ignored"),
        ([[0, 1, 2]], [[1, 1, 1]], "one class"),
        ([[0, 2]], [[1, 1]], "one class"),
        ([[0, 0]], [[1, 1]], "one class"),
        ([[0, 1, 2, 2]], [[1, 2, 0, 0]], "other pixels"),
        ([[0, 1, 2]], [[0, 1, 2]], None),
        ([[0, 1, 2]], [[0, 1, 1]], None),
        ([[1, 255]], [[1, 0]], None),
        ([[1, 1]], [[1, 1]], None),
    ],
)
def test_pixels(annotated, predicted, reason, pixels, told):
    miou = pixels(annotated, predicted)["mIoU"]
    assert reason == "one class" or (not miou >= 1) == bool(reason)
    assert told() == ([reason] if reason else [])
    if reason == "other pixels":
        assert "(2 pixels) predicted as a, annotated as c" in told.lines[0]


def test_pixels_of_several_processes(tmp_path, monkeypatch, told):
    """Each predicts one class, but not all the same."""
    name = f"{tmp_path.name}_pixels"
    register_pixels(name, tmp_path / name, [[[0, 0]], [[1, 1]]], "ab")
    parts = [SemSegIoUEvaluator(name, read_labels=read_labels) for _ in range(2)]
    for i, part in enumerate(parts):
        part.reset()
        output = {"sem_seg": one_hot_scores(torch.full((1, 2), i).tolist(), 2)}
        part.process([{"file_name": f"folder/{i}.jpg"}], [output])
    monkeypatch.setattr(comm, "gather", lambda data, dst: [part.pixels for part in parts])
    assert parts[0].evaluate()["sem_seg"]["mIoU"] == 100
    assert told() == []
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
