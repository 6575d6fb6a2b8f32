#!/usr/bin/env python3
"""
Draw what a model detects, or the classes of pixels that it tells, on images, folders of images and
videos.

    python demo/demo.py --config-file configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml \\
        --weights output/demo/model_final.pth --input datasets/digits_coco/test

Several configs with as many weights are drawn side by side, each under its names:

    python demo/demo.py --config-file CONFIG_A CONFIG_B --weights WEIGHTS_A WEIGHTS_B --input ...

An image becomes <name>.png, a video <name>.mp4. Nothing is shown in a window.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from detectron2.engine import DefaultPredictor
from detectron2.modeling import SemanticSegmentor
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

from dcn_projects.data import list_images, read_bgr_image
from dcn_projects.engine import build_predictor
from dcn_projects.engine.prediction import detect
from dcn_projects.vis import class_metadata, draw_detections

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
SHORT_SIDE = 480  # of the drawn images in pixels, at least
OPACITY = 0.6  # of the colours of classes
TITLE_HEIGHT = 24  # of the line that names config and weights, in pixels


class Drawer:
    """A model, and what draws its detections."""

    def __init__(self, name: str, predictor: DefaultPredictor, score_threshold: float):
        self.name = name
        self.score_threshold = score_threshold
        self.predictor = predictor
        self.metadata = class_metadata(predictor.cfg)

    def detect(self, image: np.ndarray):
        return detect(self.predictor, image, self.score_threshold)

    def describe(self, found) -> str:
        return f"{len(found)} detections"

    def draw_image(self, image: np.ndarray, instances) -> np.ndarray:
        scale = max(1, SHORT_SIDE / min(image.shape[:2]))
        return draw_detections(image, instances, self.metadata, scale)

    def start_video(self):
        """Colours stay with the objects from frame to frame."""
        self.video_visualizer = VideoVisualizer(self.metadata)

    def draw_frame(self, frame: np.ndarray, instances) -> np.ndarray:
        rgb = np.ascontiguousarray(frame[:, :, ::-1])
        drawn = self.video_visualizer.draw_instance_predictions(rgb, instances)
        return drawn.get_image()[:, :, ::-1]


class SegmentationDrawer(Drawer):
    """A model that tells the class of every pixel, and what lays their colours over the image."""

    def detect(self, image: np.ndarray):
        return self.predictor(image)["sem_seg"].argmax(dim=0).to("cpu")

    def describe(self, found) -> str:
        return f"{len(found.unique())} classes"

    def draw_image(self, image: np.ndarray, labels) -> np.ndarray:
        scale = max(1, SHORT_SIDE / min(image.shape[:2]))
        visualizer = Visualizer(image[:, :, ::-1], self.metadata, scale=scale)
        return visualizer.draw_sem_seg(labels, alpha=OPACITY).get_image()[:, :, ::-1]

    def draw_frame(self, frame: np.ndarray, labels) -> np.ndarray:
        rgb = np.ascontiguousarray(frame[:, :, ::-1])
        return self.video_visualizer.draw_sem_seg(rgb, labels).get_image()[:, :, ::-1]


def build_drawer(config_file: str, weights: str, opts: list[str], score_threshold: float) -> Drawer:
    predictor = build_predictor(config_file, weights, opts)
    segmentor = isinstance(predictor.model, SemanticSegmentor)
    drawer = SegmentationDrawer if segmentor else Drawer
    name = f"{Path(config_file).stem}, {Path(weights).name}"
    return drawer(name, predictor, score_threshold)


def side_by_side(pictures: list[np.ndarray], names: list[str]) -> np.ndarray:
    """One picture as it is, several under their names."""
    if len(pictures) == 1:
        return np.ascontiguousarray(pictures[0])
    columns = []
    for picture, name in zip(pictures, names):
        title = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, dtype=np.uint8)
        font = cv2.FONT_HERSHEY_SIMPLEX
        width = cv2.getTextSize(name, font, 1, 1)[0][0]
        scale = min(0.45, (picture.shape[1] - 8) / width)
        cv2.putText(title, name, (4, 17), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.vstack((title, picture)))
    return np.hstack(columns)


def draw_image(drawers: list[Drawer], source: Path, target: Path):
    image = read_bgr_image(source)
    start = time.perf_counter()
    found = [d.detect(image) for d in drawers]
    seconds = time.perf_counter() - start
    pictures = [d.draw_image(image, f) for d, f in zip(drawers, found)]
    if not cv2.imwrite(str(target), side_by_side(pictures, [d.name for d in drawers])):
        raise OSError(f"{target} cannot be written")
    counts = " and ".join(d.describe(f) for d, f in zip(drawers, found))
    print(f"{source}: {counts} in {seconds:.2f} s -> {target}")


def draw_video(drawers: list[Drawer], source: Path, target: Path):
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist.")
    video = cv2.VideoCapture(str(source))
    writer, count = None, 0
    for d in drawers:
        d.start_video()
    while True:
        there, frame = video.read()
        if not there:
            break
        pictures = [d.draw_frame(frame, d.detect(frame)) for d in drawers]
        drawn = side_by_side(pictures, [d.name for d in drawers])
        # The codec takes even sizes only.
        drawn = drawn[: drawn.shape[0] // 2 * 2, : drawn.shape[1] // 2 * 2]
        if writer is None:
            rate = video.get(cv2.CAP_PROP_FPS) or 25  # 0: the file does not tell
            size = drawn.shape[1], drawn.shape[0]
            writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
            if not writer.isOpened():
                raise OSError(f"{target} cannot be written")
        writer.write(np.ascontiguousarray(drawn))
        count += 1
    video.release()
    if count == 0:
        raise OSError(f"{source} is no video that OpenCV can read, or was cut off.")
    writer.release()
    print(f"{source}: {count} frames -> {target}")


def find_inputs(paths: list[Path]) -> list[Path]:
    """
    The images and videos that are named, or lie in folders that are named.

    Raises:
        FileNotFoundError: for a folder without images
        ValueError: if two of them would be written to the same file
    """
    found = [f for path in paths for f in (list_images(path) if path.is_dir() else [path])]
    targets = {}
    for path in found:
        other = targets.setdefault(target_name(path), path)
        if other is not path:
            raise ValueError(f"{other} and {path} would both be written to {target_name(path)}")
    return found


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def target_name(path: Path) -> str:
    return path.stem + (".mp4" if is_video(path) else ".png")


def main(args):
    if len(args.config_file) != len(args.weights):
        raise ValueError(
            f"{len(args.config_file)} configs and {len(args.weights)} weights: name as many"
        )
    paths = find_inputs(args.input)
    drawers = [
        build_drawer(config_file, weights, args.opts, args.score_threshold)
        for config_file, weights in zip(args.config_file, args.weights)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    for path in paths:
        draw = draw_video if is_video(path) else draw_image
        target = args.output / target_name(path)
        if target.resolve() == path.resolve():
            raise ValueError(f"{path} would be overwritten: choose another --output")
        draw(drawers, path, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", nargs="+", required=True)
    parser.add_argument("--weights", nargs="+", required=True, help="a checkpoint per config")
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, help="images, folders of images, videos"
    )
    parser.add_argument("--output", type=Path, default=Path("output/drawn"), help="folder")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="of detections (0.5)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the configs, last"
    )
    args = parser.parse_args()
    try:
        main(args)
    except (OSError, ValueError) as e:
        parser.exit(1, f"error: {e}\n")
