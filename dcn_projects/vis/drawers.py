"""
A model, and what draws its predictions on images and on the frames of videos. The masks and the
classes of all pixels of a very large image take gigabytes, and drawing them a minute: what is found
can be in pixels of a smaller picture of the image, on which it is drawn.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
from detectron2.data import Metadata
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer
from torch import Tensor

__all__ = ["InstanceDrawer", "PixelClassDrawer", "detect", "draw_detections", "draw_pixel_classes"]

_OPACITY = 0.6  # of the colours of classes


def detect(
    predictor: DefaultPredictor,
    image: np.ndarray,
    confidence: float,
    size: tuple[int, int] | None = None,
) -> Instances:
    """
    Args:
        image: (H, W, 3), uint8, BGR
        confidence: least score of what is returned
        size: height and width of a picture of the image; None is H and W
    Returns:
        Instances: on the CPU, best first, in pixels of the picture
    """
    with _results_of(predictor, size):
        instances = predictor(image)["instances"].to("cpu")
    instances = instances[instances.scores >= confidence]
    return instances[instances.scores.argsort(descending=True, stable=True)]


@contextlib.contextmanager
def _results_of(predictor: DefaultPredictor, size: tuple[int, int] | None) -> Iterator[None]:
    """Within this context a model gives its results in pixels of a picture of this size."""
    if size is None:
        yield
        return
    height, width = size
    handle = predictor.model.register_forward_pre_hook(
        lambda module, args: args[0][0].update(height=height, width=width)
    )
    try:
        yield
    finally:
        handle.remove()


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


def draw_pixel_classes(
    image: np.ndarray, labels: Tensor, metadata: Metadata, scale: float = 1.0
) -> np.ndarray:
    """
    Args:
        image: (H, W, 3), uint8, BGR
        labels: (H, W), the class of each pixel, on the CPU
        metadata: its `stuff_classes` are written, its `stuff_colors` laid over the image
        scale: pixels of the picture per pixel of the image
    Returns:
        ndarray: (int(H * scale), int(W * scale), 3), uint8, BGR
    """
    visualizer = Visualizer(image[:, :, ::-1], metadata, scale=scale)
    return visualizer.draw_sem_seg(labels, alpha=_OPACITY).get_image()[:, :, ::-1]


class InstanceDrawer:
    """Objects: boxes, masks if the model has them, classes and scores."""

    def __init__(self, predictor: DefaultPredictor, confidence: float = 0.5):
        """
        Args:
            predictor: its metadata has the `thing_classes`, or their indices are written
            confidence: least score of objects that are drawn
        """
        self.predictor, self.confidence = predictor, confidence
        self.metadata = predictor.metadata

    def predict(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Instances:
        """See `detect`."""
        return detect(self.predictor, image, self.confidence, size)

    def count(self, found: Instances) -> str:
        return f"{len(found)} detections"

    def lines(self, found: Instances, scale: tuple[float, float] = (1, 1)) -> list[str]:
        """
        Class, score and box (x0, y0, x1, y1) in pixels of each object.

        Args:
            scale: (x, y), pixels of the image per pixel of the picture in which it was found
        """
        found = found[:]  # with a box of its own
        found.pred_boxes = found.pred_boxes.clone()
        found.pred_boxes.scale(*scale)
        names = self.metadata.get("thing_classes")
        return [
            f"{names[k] if names else k} {score:.3f} " + " ".join(f"{x:.1f}" for x in box)
            for k, score, box in zip(
                found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist()
            )
        ]

    def draw(self, image: np.ndarray, found: Instances, scale: float = 1.0) -> np.ndarray:
        """See `draw_detections`."""
        return draw_detections(image, found, self.metadata, scale)

    def start_video(self) -> None:
        """To be called before the first frame: colours stay with the objects from then on."""
        self._video = VideoVisualizer(self.metadata)

    def draw_frame(self, frame: np.ndarray, found: Instances) -> np.ndarray:
        """Both pictures are (H, W, 3), uint8, BGR."""
        rgb = np.ascontiguousarray(frame[:, :, ::-1])
        return self._video.draw_instance_predictions(rgb, found).get_image()[:, :, ::-1]


def _of_pixels(metadata: Metadata, num_classes: int) -> Metadata:
    """
    With a name and a colour of each class. detectron2 can draw no class without a name, and gives
    those without a colour another one in each picture and frame.
    """
    names, colors = metadata.get("stuff_classes") or (), metadata.get("stuff_colors") or ()
    if len(names) != num_classes:
        names, colors = [str(k) for k in range(num_classes)], ()
    if len(colors) < num_classes:
        table = colormap(rgb=True).astype(int).tolist()
        colors = [table[k % len(table)] for k in range(num_classes)]
    return Metadata(stuff_classes=list(names), stuff_colors=list(colors))


class PixelClassDrawer:
    """The class of every pixel: its colour is laid over the image. The methods are those above."""

    def __init__(self, predictor: DefaultPredictor, num_classes: int):
        """
        Args:
            predictor: its metadata has the `stuff_classes`, or their indices are written
            num_classes: of the model
        """
        self.predictor = predictor
        self.metadata = _of_pixels(predictor.metadata, num_classes)

    def predict(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Returns the classes, on the CPU: (H, W), or those of a picture of the image (`size`)."""
        with _results_of(self.predictor, size):
            return self.predictor(image)["sem_seg"].argmax(dim=0).to("cpu")

    def count(self, found: Tensor) -> str:
        return f"{len(found.unique())} classes"

    def lines(self, found: Tensor, scale: tuple[float, float] = (1, 1)) -> list[str]:
        """The share of the pixels that each class has, the largest first."""
        counts = sorted(zip(found.flatten().bincount().tolist(), self.metadata.stuff_classes))
        return [f"{name} {100 * n / found.numel():.1f} %" for n, name in reversed(counts) if n]

    def draw(self, image: np.ndarray, found: Tensor, scale: float = 1.0) -> np.ndarray:
        """See `draw_pixel_classes`."""
        return draw_pixel_classes(image, found, self.metadata, scale)

    def start_video(self) -> None:
        self._video = VideoVisualizer(self.metadata)

    def draw_frame(self, frame: np.ndarray, found: Tensor) -> np.ndarray:
        rgb = np.ascontiguousarray(frame[:, :, ::-1])
        return self._video.draw_sem_seg(rgb, found).get_image()[:, :, ::-1]
