"""Detect and draw. This needs OpenCV, which training and evaluation do without."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances

from dcn_projects.data import read_bgr_image
from dcn_projects.vis import class_metadata, draw_detections, has_display, show

from .predictor import load_predictor

__all__ = ["detect", "picture_paths", "predict_images"]


def detect(predictor: DefaultPredictor, image: np.ndarray, confidence: float) -> Instances:
    """
    Args:
        image: (H, W, 3), uint8, BGR
        confidence: least score of what is returned
    Returns:
        Instances: on the CPU, best first
    """
    instances = predictor(image)["instances"].to("cpu")
    return instances[instances.scores >= confidence]


def picture_paths(images: Sequence[str]) -> list[Path]:
    """
    Where the pictures of images are written in the current folder: output.png, or
    <name>_pred.png of each of several.

    Raises:
        FileNotFoundError: if an image is not there
        FileExistsError: if two pictures would have the same name, or one that of an image
    """
    sources = [Path(image) for image in images]
    pictures = [Path(f"{source.stem}_pred.png") for source in sources]
    if len(sources) == 1:
        pictures = [Path("output.png")]
    for source, picture in zip(sources, pictures):
        if not source.exists():
            raise FileNotFoundError(f"--predict: {source} does not exist")
        if pictures.count(picture) > 1 or picture.resolve() in [s.resolve() for s in sources]:
            raise FileExistsError(
                f"--predict: {picture}, made of {source}, would overwrite another file"
            )
    return pictures


def predict_images(cfg, images: Sequence[str], confidence: float) -> None:
    """
    Draw what the model MODEL.WEIGHTS detects beside each image, and print it. Where there is a
    display the pictures are then shown one by one.

    Args:
        images: paths
        confidence: least score that is drawn
    Raises:
        OSError: if an image cannot be read, or a picture cannot be written (`picture_paths`)
        ValueError: if MODEL.WEIGHTS is of another model
    """
    pictures = picture_paths(images)
    predictor = load_predictor(cfg)
    metadata = class_metadata(cfg)
    for source, path in zip(images, pictures):
        image = read_bgr_image(source)
        found = detect(predictor, image, confidence)
        picture = np.hstack((image, draw_detections(image, found, metadata)))
        if not cv2.imwrite(str(path), picture):
            raise OSError(f"{path} cannot be written")
        print(f"{source}: {len(found)} detections -> {path}")
        _print_detections(found, metadata.get("thing_classes"))
    if has_display():
        show(pictures)


def _print_detections(found: Instances, names: Sequence[str] | None) -> None:
    for k, score, box in zip(
        found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist()
    ):
        name = names[k] if names else k
        print(f"  {name} {score:.3f} " + " ".join(f"{x:.1f}" for x in box))
