import os
import sys

import cv2
import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

__all__ = ["class_metadata", "draw_detections", "has_display", "show"]


def class_metadata(cfg) -> Metadata:
    """Of the first test data set. It has no class names if the data set is not registered."""
    return MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "no_class_names")


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, scale: float = 1.0
) -> np.ndarray:
    """
    Args:
        image: (H, W, 3), uint8, BGR
        instances: detections on the CPU, with boxes, scores, classes and, if there are, masks
        metadata: its `thing_classes` are written; without them the indices of the classes are
        scale: pixels of the picture per pixel of the image
    Returns:
        ndarray: (int(H * scale), int(W * scale), 3), uint8, BGR
    """
    visualizer = Visualizer(image[:, :, ::-1], metadata, scale=scale)
    return visualizer.draw_instance_predictions(instances).get_image()[:, :, ::-1]


def has_display() -> bool:
    """Whether a window can be opened, as far as the environment tells."""
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def show(picture: np.ndarray, title: str) -> None:
    """Open a window with a (H, W, 3) BGR picture until a key is pressed."""
    try:
        cv2.imshow(title, picture)
        cv2.waitKey()
        cv2.destroyAllWindows()
    except cv2.error as e:  # opencv-python-headless
        print(f"No window: this OpenCV cannot open one ({str(e).splitlines()[0]})")
