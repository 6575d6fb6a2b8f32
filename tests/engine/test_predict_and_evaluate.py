"""train_net.py --predict and --evaluate with an untrained Mask R-CNN, and data without masks."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_projects.data.datasets.warped_digits import make_dataset
from dcn_projects.engine import read_config
from tests.conftest import ROOT

CONFIG = "configs/Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml"
CONFIG_PATH = ROOT / CONFIG
SMALL = (
    "MODEL.DEVICE=cpu INPUT.MIN_SIZE_TRAIN=(64,) INPUT.MIN_SIZE_TEST=64 DATALOADER.NUM_WORKERS=0 "
    "MODEL.RPN.POST_NMS_TOPK_TEST=8 MODEL.ROI_HEADS.SCORE_THRESH_TEST=0 SOLVER.IMS_PER_BATCH=2 "
    "SOLVER.MAX_ITER=1 TEST.DETECTIONS_PER_IMAGE=5"
).split()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Four images, registered as `four`, once more as `again`, and without masks as `boxes`."""
    folder = tmp_path_factory.mktemp("digits")
    make_dataset(str(folder / "coco"), "coco", size=64, count_train=2, count_test=4)
    annotations = folder / "coco/annotations/instances_test.json"
    content = json.loads(annotations.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    (folder / "boxes.json").write_text(json.dumps(content))
    for name in ("four", "again"):
        register_coco_instances(name, {}, str(annotations), str(folder / "coco/test"))
    register_coco_instances("boxes", {}, str(folder / "boxes.json"), str(folder / "coco/test"))
    yield folder / "coco"
    for name in ("four", "again", "boxes"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(read_config(CONFIG, SMALL)).state_dict()}, path)
    return path


@pytest.fixture
def run(run_program, digits, tmp_path, monkeypatch):
    """Runs train_net.py in an empty folder without a display, with the tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    def run(*words, data="four"):
        names = [f"DATASETS.TRAIN=('{data}',)", f"DATASETS.TEST=('{data}',)"]
        config = ("--config-file", CONFIG_PATH)
        return run_program("train_net.py", *config, *SMALL, *names, "OUTPUT_DIR=out", *words)

    return run


def test_predict_one(run, digits, weights, tmp_path):
    image = sorted((digits / "test").iterdir())[0]
    code, text = run("--predict", image, "--load", weights, "--confidence", "0")
    assert not code, text
    picture = cv2.imread(str(tmp_path / "output.png"))
    assert picture.shape == (64, 128, 3)
    np.testing.assert_array_equal(picture[:, :64], cv2.imread(str(image)))
    assert (picture[:, 64:] != picture[:, :64]).any()
    lines = text.splitlines()
    assert f"{image}: 5 detections -> output.png" in lines
    name, score, *box = lines[-1].split()
    assert name in "0123456789" and 0 < float(score) < 1 and len(box) == 4


def test_predict_several(run, digits, weights, tmp_path):
    images = sorted((digits / "test").iterdir())[:2]
    code, text = run("--predict", *images, "--load", weights, "--confidence", "1.1")
    assert not code, text
    for image in images:
        picture = cv2.imread(str(tmp_path / f"{image.stem}_pred.png"))
        np.testing.assert_array_equal(picture[:, 64:], picture[:, :64])  # nothing is drawn


def test_predict_folder_into_folder(run, digits, weights, tmp_path):
    """Small as the images are, nothing is enlarged, and nothing shown."""
    code, text = run("--input", digits / "test", "--weights", weights, "--output", "drawn/here")
    assert not code, text
    names = sorted(f"{image.stem}_pred.png" for image in (digits / "test").iterdir())
    pictures = sorted((tmp_path / "drawn/here").iterdir())
    assert [p.name for p in pictures] == names
    assert cv2.imread(str(pictures[0])).shape == (64, 128, 3)


def test_predict_large_images(run, digits, weights, tmp_path, monkeypatch):
    """They are drawn smaller; what is printed is in pixels of the image, as without the bound."""
    image = sorted((digits / "test").iterdir())[0]
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), cv2.resize(cv2.imread(str(image)), (200, 100)))
    write_clip("clip.avi", (50, 150))
    words = ("--predict", large, "clip.avi", "--load", weights, "--confidence", "0")
    lines = [run(*words)[1].splitlines()]
    assert cv2.imread("large_pred.png").shape == (100, 400, 3)
    monkeypatch.setattr("dcn_projects.vis.pictures.LONGEST", 50)
    lines.append(run(*words)[1].splitlines())
    assert cv2.imread("large_pred.png").shape == (25, 100, 3)
    assert cv2.VideoCapture("clip_pred.mp4").read()[1].shape == (50, 100, 3)
    told = [f"{large} has 200 x 100 pixels and is drawn at 50 x 25"]
    told += ["clip.avi has 64 x 64 pixels and is drawn at 50 x 50"]
    assert [line for line in lines[1] if " is drawn at " in line] == told
    before, after = (
        [line.split() for line in some if line.startswith("  ") and line[2].isdigit()]
        for some in lines
    )
    assert len(before) == len(after) == 5
    for a, b in zip(before, after):
        assert a[:2] == b[:2]
        np.testing.assert_allclose(np.array(a[2:], float), np.array(b[2:], float), atol=0.11)


def write_clip(path, levels):
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 64))
    for level in levels:
        video.write(np.full((64, 64, 3), level, np.uint8))
    video.release()


def test_predict_video_with_two_models(run, digits, weights, tmp_path):
    write_clip("clip.avi", (50, 150))
    second = ("--config-file", CONFIG_PATH, "--load", weights)
    code, text = run("--load", weights, *second, "--predict", "clip.avi")
    assert not code and text.splitlines()[-1] == "clip.avi: 2 frames -> output.mp4", text
    drawn = cv2.VideoCapture(str(tmp_path / "output.mp4"))
    there, frame = drawn.read()
    assert there and frame.shape == (24 + 64, 3 * 64, 3)  # the frame, and each model, with titles


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Weights of a segmentor that takes everything for road, its first class of 19."""
    model = build_model(read_config(SEGMENTOR, ["MODEL.DEVICE=cpu"]))
    torch.nn.init.constant_(model.sem_seg_head.score.bias[:1], 1e6)
    path = tmp_path_factory.mktemp("road") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def own_pixels():
    """Registered as users do it: without names, with names of objects, and of other classes."""
    names = {"mine": {}, "things": {"thing_classes": ["x"] * 19}, "few": {"stuff_classes": ["x"]}}
    for name, content in names.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(evaluator_type="sem_seg", ignore_label=255, **content)
    yield
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


SEGMENTOR = "DeepLab/deeplab_R_14_digits.yaml"
PROGRAMS = {"train_net.py": "output", "demo/demo.py": "{}"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("data", [None, "mine", "things", "few", "not_registered", ""])
def test_predict_pixel_classes(
    program, data, run_program, digits, road, own_pixels, tmp_path, monkeypatch
):
    """Images and videos, whatever is known of the data."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.chdir(tmp_path)
    words = ["--config-file", SEGMENTOR, "--load", road, "INPUT.MIN_SIZE_TEST=64"]
    words += ["MODEL.DEVICE=cpu", "--output", tmp_path]
    if data is not None:
        names = f"('{data}',)" if data else "()"
        words += [f"DATASETS.TRAIN={names}", f"DATASETS.TEST={names}"]
    image = sorted((digits / "test").iterdir())[0]
    code, text = run_program(program, *words, "--predict", image)
    assert not code, text
    target = tmp_path / (PROGRAMS[program].format(image.stem) + ".png")
    *_, line, share = text.splitlines()
    assert line.startswith(f"{image}: 1 classes") and line.endswith(f"-> {target}")
    assert share == f"  {'road' if data is None else 0} 100.0 %"
    picture = cv2.imread(str(target))
    if program == "train_net.py":
        plain, picture = picture[:, :64], picture[:, 64:]
        np.testing.assert_array_equal(plain, cv2.imread(str(image)))
    plain = cv2.resize(cv2.imread(str(image)), picture.shape[1::-1])
    assert (picture != plain).mean() > 0.9

    write_clip("clip.avi", (50, 150))
    code, text = run_program(program, *words, "--predict", "clip.avi")
    assert not code and "clip.avi: 2 frames -> " in text, text


def test_predict_with_the_last_checkpoint(run, digits, weights, tmp_path):
    """As --eval-only: without --load the weights are those of OUTPUT_DIR."""
    (tmp_path / "out").mkdir()
    shutil.copy(weights, tmp_path / "out/model_final.pth")
    image = sorted((digits / "test").iterdir())[0]
    code, text = run("--predict", image, "MODEL.WEIGHTS=")
    assert code == 1 and "out has no checkpoint" in text
    (tmp_path / "out/last_checkpoint").write_text("model_final.pth")
    code, text = run("--predict", image)
    assert not code and (tmp_path / "output.png").exists(), text


# OpenCV of the process that opens the windows
RECORDER = """
def imread(path):
    return open(path, "rb").read(4)
def imshow(title, picture):
    print(title, picture, file=open("shown", "a"))
def waitKey():
    pass
destroyAllWindows = waitKey
"""


def test_window_where_there_is_a_display(run, digits, weights, tmp_path, monkeypatch):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/cv2.py").write_text(RECORDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    images = sorted((digits / "test").iterdir())[:2]
    run("--predict", *images, "--load", weights)
    assert not (tmp_path / "shown").exists()
    monkeypatch.setenv("DISPLAY", ":0")
    code, text = run("--predict", *images, "--load", weights)
    assert not code and "No window" not in text
    png = b"\x89PNG"
    expected = [f"{image.stem}_pred.png {png}" for image in images]
    assert (tmp_path / "shown").read_text().splitlines() == expected


def test_display_that_does_not_answer(run, digits, weights, tmp_path, monkeypatch):
    """Qt aborts the process that opens a window."""
    monkeypatch.setenv("DISPLAY", ":9876")
    image = sorted((digits / "test").iterdir())[0]
    code, text = run("--predict", image, "--load", weights)
    assert not code and (tmp_path / "output.png").exists()
    assert text.splitlines()[-1].startswith("No window: ")


def test_evaluate(run, digits, weights, tmp_path):
    code, text = run("--evaluate", "found.json", "--load", weights)
    assert not code, text
    truth = COCO(str(digits / "annotations/instances_test.json"))
    entries = json.loads((tmp_path / "found.json").read_text())
    assert len(entries) == 4 * 5 and {e["image_id"] for e in entries} == set(truth.imgs)
    assert {e["category_id"] for e in entries} <= set(truth.cats)
    for entry in entries:
        x, y, w, h = entry["bbox"]
        assert 0 <= x <= x + w <= 64 and 0 <= y <= y + h <= 64
        assert isinstance(entry["segmentation"]["counts"], str)
        inside = np.argwhere(run_lengths.decode(entry["segmentation"]))
        assert ((inside >= [y - 1, x - 1]) & (inside <= [y + h, x + w])).all()

    results = json.loads((tmp_path / "out/results.json").read_text())
    found = truth.loadRes(str(tmp_path / "found.json"))
    for task in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert 100 * evaluation.stats[0] == pytest.approx(results[task]["AP"])


def test_evaluate_several(run, weights, tmp_path):
    names = "DATASETS.TEST=('four','again')"
    code, text = run("--evaluate", "found.json", "--load", weights, names)
    assert not code, text
    contents = [(tmp_path / f"found-{name}.json").read_text() for name in ("four", "again")]
    assert contents[0] == contents[1] and len(json.loads(contents[0])) == 4 * 5


@pytest.mark.parametrize("flags", [["DATASETS.TEST=('four',)"], ["--eval-only"]])
def test_masks_missing(run, weights, flags):
    code, text = run(*flags, "--load", weights, data="boxes")
    error = text.splitlines()[-1]
    assert code == 1 and error.startswith("error: ") and "coco/test/" in error
    assert "annotations of data set boxes an object has no mask" in error
    assert "MODEL.MASK_ON False" in error


@pytest.mark.parametrize(
    "words,named",
    [
        (["--predict", "none.jpg"], "none.jpg does not exist"),
        (["--predict", "{image}", "INPUT.MAX_PIXELS=99"], "has more than 99 pixels, which INPUT."),
        (["--predict", "{image}", "{image}"], "would overwrite another file"),
        (["--predict", "{image}", "--output", "{image}"], "would be overwritten"),
        (["--predict", "{image}", "--output", "{weights}"], "is a file, no folder"),
        (["--predict", "{weights}"], "is no image"),
        (["--predict", "none.mp4"], "none.mp4 does not exist"),
        (["--predict", "{image}", "--load", "a.pth", "--load", "b.pth"], "1 configs and 2 weights"),
        (["--predict", "{image}", "MODEL.WEIGHTS="], "MODEL.WEIGHTS is empty"),
        (["--evaluate", "a.json", "DATASETS.TEST=('digits_voc_test',)"], "digits_voc"),
    ],
)
def test_mistakes(run, digits, weights, words, named, monkeypatch):
    image = sorted((digits / "test").iterdir())[0]
    monkeypatch.setattr("dcn_projects.engine.predictor.build_model", None)  # nothing is built
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    words = [word.format(image=image, weights=weights) for word in words]
    if not any(word.startswith("MODEL.WEIGHTS") or word == "--load" for word in words):
        words += ["--load", weights]
    code, text = run(*words)
    error = text.splitlines()[-1]
    assert code == 1 and error.startswith("error: ") and named in error
