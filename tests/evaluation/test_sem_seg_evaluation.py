"""IoU by hand, and by Cityscapes' own tools."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from dcn_projects.data import read_labels
from dcn_projects.data.datasets.cityscapes import load_cityscapes_label_ids
from dcn_projects.data.datasets.warped_digits import make_dataset
from dcn_projects.evaluation import CityscapesIoUEvaluator, SemSegIoUEvaluator

from .pixel_files import one_hot_scores as scores
from .pixel_files import register_pixels

NAN = float("nan")


@pytest.fixture
def register(tmp_path):
    """register(list of annotated labels, classes) -> name of a data set without images."""
    name = f"sem_seg_{tmp_path.name}"

    def register(annotated, classes):
        register_pixels(name, tmp_path, annotated, classes)
        return name

    yield register
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def run(evaluator, predicted, **others):
    evaluator.reset()
    for i, labels in enumerate(predicted):
        output = {"sem_seg": scores(labels, len(evaluator.class_names))}
        output |= {name: torch.tensor(values[i]) for name, values in others.items()}
        evaluator.process([{"file_name": f"folder/{i}.jpg"}], [output])
    return evaluator


ANNOTATED = [[[0, 0, 1], [1, 255, 255]], [[0, 1, 1], [1, 1, 1]]]
PREDICTED = [[[0, 1, 1], [1, 2, 0]], [[0, 0, 1], [1, 1, 1]]]


def test_by_hand(register):
    """
    Class 0 is annotated at 3 pixels and predicted at 3 of those that count, 2 of them right; class
    1 at 7 and 7, 6 right; class 2 only where it is ignored; and both images are one sum.
    """
    name = register(ANNOTATED, "abc")
    results = run(SemSegIoUEvaluator(name, read_labels=read_labels), PREDICTED).evaluate()
    assert results.keys() == {"sem_seg"}
    expected = {"IoU-a": 50.0, "IoU-b": 75.0, "IoU-c": NAN, "mIoU": 62.5, "pACC": 80.0}
    assert results["sem_seg"] == pytest.approx(expected, nan_ok=True)


def test_a_class_that_is_predicted_but_not_annotated_counts(register):
    name = register([[[0, 0]]], "abc")
    results = run(SemSegIoUEvaluator(name, read_labels=read_labels), [[[0, 1]]]).evaluate()
    expected = {"IoU-a": 50.0, "IoU-b": 0.0, "IoU-c": NAN, "mIoU": 25.0, "pACC": 50.0}
    assert results["sem_seg"] == pytest.approx(expected, nan_ok=True)


def test_at_the_size_of_the_input(register):
    """The annotations are halved in both directions; of every 2 x 2 pixels one is taken."""
    annotated = np.kron([[0, 1, 2], [1, 1, 255]], np.ones((2, 2), int))
    name = register([annotated], "abc")
    evaluator = run(
        SemSegIoUEvaluator(name, read_labels=read_labels),
        [np.zeros((4, 6), int)],
        labels=[[[0, 1, 2], [1, 2, 0]]],
    )
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * 4 / 20 / 3)
    expected = {"IoU-a": 100.0, "IoU-b": 200 / 3, "IoU-c": 50.0}
    expected |= {"mIoU": sum(expected.values()) / 3, "pACC": 80.0}
    assert results["sem_seg_input_size"] == pytest.approx(expected)


def test_processes_are_summed(register, monkeypatch):
    name = register(ANNOTATED, "abc")
    parts = [run(SemSegIoUEvaluator(name, read_labels=read_labels), []) for _ in range(2)]
    for i, part in enumerate(parts):
        part.process([{"file_name": f"folder/{i}.jpg"}], [{"sem_seg": scores(PREDICTED[i], 3)}])
    monkeypatch.setattr(comm, "gather", lambda data, dst: [part.pixels for part in parts])
    assert parts[0].evaluate()["sem_seg"]["mIoU"] == pytest.approx(62.5)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_predictions_are_written_in_colour(register, tmp_path):
    name = register(ANNOTATED, "abc")
    run(SemSegIoUEvaluator(name, str(tmp_path / "out"), read_labels=read_labels), PREDICTED)
    for i, labels in enumerate(PREDICTED):
        image = Image.open(tmp_path / f"out/sem_seg/{i}.png")
        assert image.mode == "P" and np.asarray(image).tolist() == labels
        colors = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(colors, np.array(labels)[:, :, None] * [10, 20, 30])


@pytest.mark.parametrize(
    "annotated, words",
    [
        ([[0, 3]], "0.png has the label 3 at 1 pixels"),
        ([[0]], "0.png has 1 x 1 pixels, but its im"),
    ],
)
def test_mistakes_are_named(annotated, words, register):
    evaluator = SemSegIoUEvaluator(register([annotated], "abc"), read_labels=read_labels)
    with pytest.raises(OSError, match=words):
        run(evaluator, [[[0, 1]]])


# Cityscapes


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A data set in the layout of Cityscapes, from either kind of its labels."""
    root = tmp_path_factory.mktemp("digits")
    make_dataset(root, "cityscapes", size=64, count_train=2, count_test=4)
    records = load_cityscapes_label_ids(f"{root}/leftImg8bit/val", f"{root}/gtFine/val")
    theirs = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    names = []
    for kind in ("labelIds", "labelTrainIds"):
        names.append(f"digits_with_{kind}")
        changed = [
            r | {"sem_seg_file_name": r["sem_seg_file_name"].replace("labelIds", kind)}
            for r in records
        ]
        DatasetCatalog.register(names[-1], lambda changed=changed: changed)
        meta = MetadataCatalog.get(names[-1])
        meta.set(stuff_classes=theirs.stuff_classes, ignore_label=255)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", [0, 1])
def test_cityscapes_tools_find_the_same(kind, digits, tmp_path):
    pytest.importorskip("cityscapesscripts")
    rng = np.random.default_rng(0)
    evaluator = CityscapesIoUEvaluator(digits[kind], str(tmp_path), read_labels=read_labels)
    evaluator.reset()
    for record in DatasetCatalog.get(digits[kind]):
        labels = read_labels(record["sem_seg_file_name"], 19, 255).astype(int)
        labels[labels == 255] = 5
        noise = rng.random(labels.shape) < 0.3
        labels[noise] = rng.integers(0, 19, noise.sum())
        evaluator.process([record], [{"sem_seg": scores(labels, 19)}])
        written = np.asarray(Image.open(evaluator.png_file(record["file_name"])))
        assert {(5, 17), (13, 26)} <= set(zip(labels.flat, written.flat))  # pole and car
    in1d = hasattr(np, "in1d")
    results = evaluator.evaluate()
    assert hasattr(np, "in1d") == in1d
    official = results["cityscapes"]
    assert official["IoU"] == pytest.approx(results["sem_seg"]["mIoU"])
    assert 0 < official["iIoU"] < 100 and official["IoU_sup"] > official["IoU"]


def test_a_prediction_that_the_tools_cannot_read(digits, tmp_path, capsys):
    pytest.importorskip("cityscapesscripts")
    evaluator = CityscapesIoUEvaluator(digits[0], str(tmp_path), read_labels=read_labels)
    evaluator.reset()
    record = DatasetCatalog.get(digits[0])[0]
    evaluator.process([record], [{"sem_seg": torch.rand(19, 64, 64)}])
    with pytest.raises(OSError, match="could not evaluate .*sem_seg"):
        evaluator.evaluate()
    assert "Unable to load" in capsys.readouterr().out


def test_without_cityscapes_tools(digits, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    evaluator = CityscapesIoUEvaluator(digits[0], str(tmp_path), read_labels=read_labels)
    assert "pip install cityscapesscripts" in caplog.text
    evaluator.reset()
    record = DatasetCatalog.get(digits[0])[0]
    evaluator.process([record], [{"sem_seg": torch.rand(19, 64, 64)}])
    assert evaluator.evaluate().keys() == {"sem_seg"}
