"""demo.py as its users run it, on an untrained model."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dcn_projects import add_dcn_config

DEMO = "demo/demo.py"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (96, 128, 3), np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 96))
    for level in (50, 100, 150):
        writer.write(np.full((96, 128, 3), level, np.uint8))
    writer.release()
    return path


@pytest.fixture
def run(run_program, tiny_model, tmp_path):
    def run(*inputs, models=1, weights=None, output=None, threshold=0):
        config, own_weights, opts = tiny_model()
        return run_program(
            DEMO,
            *("--config-file", *[config] * models),
            *("--weights", *(weights or [own_weights] * models)),
            *("--input", *inputs, "--output", output or tmp_path / "out"),
            *("--score-threshold", threshold, "--opts", *opts),
        )

    return run


def test_folder(run, folder, tmp_path):
    code, text = run(folder)
    assert code == 0, text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    assert text.count("5 detections in") == 2
    plain = cv2.imread(str(folder / "b.png"))
    drawn = cv2.imread(str(tmp_path / "out/b.png"))
    assert drawn.shape == (480, 640, 3)
    enlarged = cv2.resize(plain, (640, 480), interpolation=cv2.INTER_NEAREST)
    with_boxes = np.abs(drawn.astype(int) - enlarged).mean()

    run(folder, threshold=1.1)
    drawn = cv2.imread(str(tmp_path / "out/b.png"))
    assert (
        np.abs(drawn.astype(int) - enlarged).mean() < with_boxes
    )  # nothing detected, nothing drawn


def test_side_by_side(run, folder, tmp_path):
    code, text = run(folder / "a.jpg", models=2)
    assert code == 0 and "5 detections and 5 detections in" in text
    drawn = cv2.imread(str(tmp_path / "out/a.png"))
    assert drawn.shape == (480 + 24, 2 * 640, 3)
    assert drawn[:24].min() < 100 < drawn[:24].mean()  # names, black on white


SEGMENTORS = ["configs/DeepLab/deeplab_R_14_digits.yaml"]
SEGMENTORS.append("configs/DeepLab/deformable_deeplab_R_14_digits.yaml")
ROAD = (128, 64, 128)  # BGR and RGB, as it happens


@pytest.fixture
def run_segmentors(run_program, tmp_path):
    """Models that take everything for road."""

    def run(source):
        weights = []
        for config in SEGMENTORS:
            cfg = get_cfg()
            add_dcn_config(cfg)
            cfg.merge_from_file(config)
            cfg.MODEL.DEVICE = "cpu"
            model = build_model(cfg)
            torch.nn.init.constant_(model.sem_seg_head.score.bias[:1], 1e6)
            weights.append(tmp_path / f"{len(weights)}.pth")
            torch.save({"model": model.state_dict()}, weights[-1])
        return run_program(
            *(DEMO, "--config-file", *SEGMENTORS, "--weights", *weights, "--input", source),
            *("--output", tmp_path / "out", "--opts", "INPUT.MIN_SIZE_TEST", 64),
        )

    return run


def test_segmentors_side_by_side(run_segmentors, folder, video, tmp_path):
    code, text = run_segmentors(folder / "a.jpg")
    assert code == 0 and "1 classes and 1 classes in" in text, text
    drawn = cv2.imread(str(tmp_path / "out/a.png"))
    assert drawn.shape == (480 + 24, 2 * 640, 3)
    plain = cv2.resize(cv2.imread(str(folder / "a.jpg")), (640, 480))
    for overlay in (drawn[24:, :640], drawn[24:, 640:]):
        expected = 0.6 * np.array(ROAD) + 0.4 * plain.mean(axis=(0, 1))
        np.testing.assert_allclose(np.median(overlay, axis=(0, 1)), expected, atol=8)
    code, text = run_segmentors(video)
    assert code == 0 and len(frames(tmp_path / "out/clip.mp4")[0]) == 3


def frames(path):
    video = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, frame = video.read()
        if not there:
            return found, video.get(cv2.CAP_PROP_FPS)
        found.append(frame)


@pytest.mark.parametrize("models", [1, 2])
def test_video(run, video, tmp_path, models):
    code, text = run(video, models=models)
    assert code == 0 and "3 frames" in text
    found, rate = frames(tmp_path / "out/clip.mp4")
    assert rate == pytest.approx(5)
    height = 96 + 24 if models == 2 else 96
    assert [f.shape for f in found] == [(height, 128 * models, 3)] * 3
    levels = [np.median(f[-90:]) for f in found]
    np.testing.assert_allclose(levels, (50, 100, 150), atol=12)


def test_a_video_that_was_cut_off(run, video, tmp_path):
    """Its header still tells of three frames."""
    content = video.read_bytes()
    last = content.rindex(b"00dc", 0, content.rindex(b"idx1"))
    second = content.rindex(b"00dc", 0, last)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(content[:second])
    code, text = run(cut)
    assert code == 0 and "cut.avi: 1 frames (of 3: it may be cut off) -> " in text, text
    assert len(frames(tmp_path / "out/cut.mp4")[0]) == 1
    code, text = run(video)
    assert code == 0 and "clip.avi: 3 frames -> " in text


@pytest.mark.parametrize("height, width", [(1, 96), (96, 1), (2, 150)])
def test_narrow_images_that_the_network_can_see(run, tmp_path, height, width):
    """They are enlarged, as others are, but not to pictures of 50,000 pixels."""
    path = tmp_path / "narrow.png"
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    code, text = run(path)
    assert code == 0 and "narrow.png: " in text, text
    drawn = cv2.imread(str(tmp_path / "out/narrow.png"))
    scale = 4096 / max(height, width)
    assert drawn.shape == (int(height * scale), int(width * scale), 3)


@pytest.mark.parametrize("height, width, seen", [(3, 2000, "1000 x 2"), (5000, 1, "0 x 1000")])
def test_images_that_are_too_narrow(run, folder, tmp_path, height, width, seen):
    path = folder / "narrow.png"
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    code, text = run(path)
    assert code == 1 and text.splitlines()[-1] == (
        f"error: {path}: the image has {width} x {height} pixels, of which the network would see "
        f"{seen}: it is too narrow. Cut it into pieces, or raise INPUT.MAX_SIZE_TEST"
    )


def test_mistakes(run, folder, video, tiny_model, tmp_path):
    plain = tiny_model(deformable=False)[1]
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[:100])
    (tmp_path / "a.png").write_bytes((folder / "b.png").read_bytes())
    for arguments, message in [
        (dict(inputs=[tmp_path / "none.jpg"]), "none.jpg does not exist"),
        (dict(inputs=[tmp_path / "none.mp4"]), "none.mp4 does not exist"),
        (dict(inputs=[tmp_path / "empty"]), "empty holds no image"),
        (dict(inputs=[tmp_path / "cut.jpg"]), "cut.jpg is no image, or was cut off"),
        (dict(inputs=[tmp_path / "cut.avi"]), "cut.avi is no video"),
        (dict(inputs=[folder, tmp_path / "a.png"]), "would both be written to a.png"),
        (dict(inputs=[folder / "b.png"], output=folder), "would be overwritten"),
        (dict(inputs=[folder], models=2, weights=["one.pth"]), "2 configs and 1 weights"),
        (dict(inputs=[folder], weights=["none.pth"]), "none.pth does not exist"),
        (dict(inputs=[folder], weights=[plain]), "model_False.pth: it is of another model"),
    ]:
        code, text = run(*arguments.pop("inputs"), **arguments)
        last = text.strip().splitlines()[-1]
        assert code == 1 and last.startswith("error: ") and message in last, text
