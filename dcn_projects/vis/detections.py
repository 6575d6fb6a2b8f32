import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

__all__ = ["class_metadata", "draw_detections", "has_display", "show"]

_WINDOWS = """
import sys
import cv2
for path in sys.argv[1:]:
    cv2.imshow(path, cv2.imread(path))
    cv2.waitKey()
    cv2.destroyAllWindows()
"""


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


def show(paths: Sequence[Path]) -> None:
    """Open a window with one picture after the other until a key is pressed, where that works."""
    # In a process of its own: Qt aborts the one it is in where DISPLAY leads nowhere.
    command = [sys.executable, "-c", _WINDOWS, *map(str, paths)]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        print("No window: the display does not answer, or this OpenCV has none (headless)")
