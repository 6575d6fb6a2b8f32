"""The tool as its users run it, on an untrained model whose filters have a known width."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.conftest import ROOT

TOOL = "tools/visualize_offsets.py"
LAYER = "backbone.res5.0.conv2"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    return path


@pytest.fixture
def run(run_program, tiny_model, tmp_path):
    def run(*arguments, **kwargs):
        config, weights, opts = tiny_model(**kwargs)
        files = ("--config-file", config, "--weights", weights, "--output", tmp_path / "out")
        return run_program(TOOL, *files, *arguments, "--opts", *opts)

    return run


def red_dots(path):
    """Number of red dots in a picture, and their mean (x, y)."""
    picture = cv2.imread(str(path)).astype(int)
    red = ((picture[..., 2] > 250) & (picture[..., :2].max(axis=2) < 5)).astype(np.uint8)
    count, _, _, centers = cv2.connectedComponentsWithStats(red)
    return count - 1, centers[1:].mean(axis=0)


def test_pictures_and_numbers(run, image, tmp_path):
    # A grey image: everything red is drawn.
    cv2.imwrite(str(image), np.full((96, 128, 3), 100, np.uint8))
    points = ("--point", "70,30", "20.5,80")
    code, text = run("--image", image, *points, "--score-threshold", 0, spread=0.25)
    assert code == 0, text
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} >= {
        "sampling_locations_70_30.png",
        "sampling_locations_20_80.png",
        f"offset_magnitude_{LAYER}.png",
        "effective_dilation.json",
    }
    assert len(list(out.glob("deformed_bins_*.png"))) == 3

    # The input is 64 x 85 pixels, a map of 4 x 6 cells, and pictures are 600 / 64 times as large.
    # (70, 30) lies in cell (1, 2). Taps are at rows -1, 1.25, 3.5 and columns 0, 2.25, 4.5: six of
    # them in the picture.
    count, center = red_dots(out / "sampling_locations_70_30.png")
    assert count == 6
    zoom = 16 * 600 / 64
    np.testing.assert_allclose(center, ((2.25 + 0.5) * zoom, (2.375 + 0.5) * zoom), atol=2)

    content = json.loads((out / "effective_dilation.json").read_text())
    entries = [e for e in content["layers"][LAYER].values() if e["count"]]
    assert sum(e["count"] for e in entries) == 4 * 5  # cells whose centre is in the image
    for entry in entries:
        assert entry["mean"] == pytest.approx(2.25, abs=1e-5)
        assert entry["std"] == pytest.approx(0, abs=1e-3)
    assert "2.25 ± 0.00" in text and "5 detections in" in text


@pytest.fixture
def register(image, tmp_path):
    """register(annotations of each image) makes the data set "offsets_test" of three images."""

    def register(entries):
        DatasetCatalog.register("offsets_test", lambda: [{"file_name": str(image), **entries}] * 3)
        MetadataCatalog.get("offsets_test").set(json_file=str(image), image_root=str(tmp_path))

    yield register
    DatasetCatalog.remove("offsets_test")
    MetadataCatalog.remove("offsets_test")


def test_statistics_of_a_data_set(run, register, tmp_path):
    objects = [{"bbox": [0, 0, 60, 60], "bbox_mode": 0}, {"bbox": [64, 0, 10, 10], "bbox_mode": 1}]
    crowd = {"bbox": [0, 0, 128, 96], "bbox_mode": 0, "iscrowd": 1}
    register({"annotations": [*objects, crowd]})
    code, text = run("--dataset", "offsets_test", "--max-images", 2)
    assert code == 0, text
    content = json.loads((tmp_path / "out/effective_dilation.json").read_text())
    assert content["objects"] == "annotated objects of 2 images of offsets_test"
    sizes = content["layers"][LAYER]
    # 64 / 96 of 60 pixels are 40: cells with centres 8, 24 (and not 40) in both directions.
    assert sizes["medium"] == {"mean": 2.0, "std": 0.0, "count": 2 * 4}
    assert sizes["small"]["count"] == sizes["large"]["count"] == 0
    assert sizes["background"]["count"] == 2 * (4 * 5 - 4)


def test_without_detections_the_middle_is_shown(run, image, tmp_path):
    code, text = run("--image", image, "--score-threshold", 1.1)
    assert code == 0 and "0 detections are shown" in text
    assert (tmp_path / "out/sampling_locations_64_48.png").exists()
    assert not list((tmp_path / "out").glob("deformed_bins*"))


def test_names_of_other_origins(run_program, tiny_model, image, tmp_path):
    """Of the options, and of the config: those of train_net.py --predict and demo.py."""
    config, weights, opts = tiny_model()
    words = ("--config-file", Path(config).relative_to(ROOT / "configs"), *opts)
    words += (f"MODEL.WEIGHTS={weights}", "--predict", image, "--confidence", 1.1)
    code, text = run_program(TOOL, *words, "--output", tmp_path / "out")
    assert code == 0 and "0 detections are shown" in text, text
    assert (tmp_path / "out/sampling_locations_64_48.png").exists()


MISTAKES = {
    "missing image": (["--image", "{out}/none.jpg"], "none.jpg does not exist"),
    "corrupt image": (["--image", "{out}/cut.png"], "cut.png is no image, or was cut off"),
    "folder": (["--image", "{out}"], "is no image"),
    "narrow image": (["--image", "{out}/narrow.png"], "narrow.png: the image has 2000 x 3 pixels"),
    "deep image": (["--image", "{out}/deep.png"], "deep.png has grey levels of more than 8 bits"),
    "video": (["--image", "{out}/clip.avi"], "clip.avi is no image"),
    "point outside": (
        ["--image", "{image}", "--point", "128,5"],
        "128,5 is outside of the image, which is 128 x 96",
    ),
    "group": (["--image", "{image}", "--group", "1"], "has 1 deformable groups"),
    "data set": (["--dataset", "digits_coco_tset"], "digits_coco_tset"),
    "point that is none": (["--image", "{image}", "--point", "5"], "5 is not X,Y"),
    "nothing to look at": ([], "give --image, --dataset or both"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, run, image, tmp_path):
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:3000])
    (tmp_path / "clip.avi").write_bytes(b"RIFF....AVI LIST")
    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((3, 2000, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((9, 9), np.uint16))
    arguments, message = MISTAKES[mistake]
    code, text = run(*(a.format(out=tmp_path, image=image) for a in arguments))
    last = text.strip().splitlines()[-1]
    assert code in (1, 2) and "error: " in last and message in last, text


def test_a_data_set_with_a_narrow_image(run, register, tmp_path):
    cv2.imwrite(str(tmp_path / "narrow.png"), np.zeros((3, 2000, 3), np.uint8))
    register({"annotations": [], "file_name": str(tmp_path / "narrow.png")})
    code, text = run("--dataset", "offsets_test")
    assert code == 1 and "error: " + str(tmp_path / "narrow.png: the image has 2000 x 3") in text


def test_a_data_set_without_annotations(run, register):
    register({})
    code, text = run("--dataset", "offsets_test")
    assert code == 1 and "error: data set offsets_test: there is no annotations" in text


def test_no_deformable_layer(run, image):
    code, text = run("--image", image, deformable=False)
    assert code == 1 and "error: The model has no deformable layer" in text


def test_missing_weights_and_config(run_program, tiny_model, image):
    config, weights, _ = tiny_model()
    files = {"--config-file": config, "--weights": weights, "--image": image}
    for name in ("--config-file", "--weights"):
        arguments = [x for pair in {**files, name: "none.file"}.items() for x in pair]
        code, text = run_program(TOOL, *arguments)
        assert code == 1 and "error: " in text and "none.file" in text
