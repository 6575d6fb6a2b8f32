"""The offsets of all deformable layers of a model while one image ran through it."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances, pairwise_iou

from dcn_projects.layers import DeformROIPool

from .narrow_images import narrow_images_refused
from .recorded_offsets import LayerOffsets, record_offsets
from .sampling_locations import sampling_locations

__all__ = ["ImageOffsets", "record_image"]


@dataclass
class ImageOffsets:
    """
    Attributes:
        size: height and width of the network input, without padding
        scale: (x, y), pixels of the network input per pixel of the image
        convs: name -> deformable convolution, in the order in which they ran; one that ran more
            than once has an entry "name[i]" per call
        strides: name -> pixels of the network input per cell of a convolution's output map
        poolings: calls of deformable RoI pooling
        instances: detections in pixels of the network input, None of a model without
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    convs: dict[str, LayerOffsets]
    strides: dict[str, int]
    poolings: list[LayerOffsets]
    instances: Instances | None

    def stack(self, count: int) -> list[str]:
        """Names of up to `count` last convolutions whose maps all have the size of the last's."""
        names = list(self.convs)
        first = len(names) - 1
        while (
            len(names) - first < count
            and first > 0
            and tuple(self.convs[names[first]].layer.stride) == (1, 1)
            and self.strides[names[first - 1]] == self.strides[names[-1]]
        ):
            first -= 1
        return names[first:]

    def locations(self, point: tuple[float, float], layers: int = 3, group: int = 0) -> tuple:
        """
        What the last convolutions, stacked, read for the output cell under a point.

        Args:
            point: (x, y) in pixels of the image
            layers: convolutions that are stacked, see `stack`
            group: deformable group that is followed
        Returns:
            points, cell, stride: as `draw_sampling_locations` takes them
        Raises:
            ValueError: if the point is outside of the image, or there is no such group
        """
        x, y = np.multiply(point, self.scale)
        if not (0 <= x < self.size[1] and 0 <= y < self.size[0]):
            width, height = (round(n / s) for n, s in zip(self.size[::-1], self.scale))
            raise ValueError(
                f"the point {point[0]:g},{point[1]:g} is outside of the image, which is "
                f"{width} x {height} pixels"
            )
        names = self.stack(layers)
        entries = [self.convs[name] for name in names]
        num_groups = entries[-1].offset.shape[1] // (2 * np.prod(entries[-1].layer.kernel_size))
        if not 0 <= group < num_groups:
            raise ValueError(f"group {group}: {names[-1]} has {num_groups} deformable groups")
        stride = self.strides[names[-1]]
        # A map may end before the last pixel.
        row, column = np.minimum(
            (int(y / stride), int(x / stride)), np.array(entries[-1].offset.shape[-2:]) - 1
        )
        points = sampling_locations(entries, (row, column), group=group)
        # They are in the map that the first convolution reads, the cell in the one it writes.
        ratio = entries[0].layer.stride[0]
        return points, ((row + 0.5) * ratio - 0.5, (column + 0.5) * ratio - 0.5), stride // ratio

    def middle_of(self, box: np.ndarray) -> tuple[float, float]:
        """
        Args:
            box: (4,), in pixels of the network input
        Returns:
            tuple: (x, y) in pixels of the image, as `locations` takes it
        """
        x0, y0, x1, y1 = map(float, box)
        return (x0 + x1) / 2 / self.scale[0], (y0 + y1) / 2 / self.scale[1]

    def surest(self, count: int | None = None, confidence: float = 0.0) -> Instances | None:
        """
        Returns:
            Instances: up to `count` detections of at least `confidence`, best first; None of a
            model without
        """
        if self.instances is None:
            return None
        sure = self.instances[self.instances.scores >= confidence]
        return sure[sure.scores.argsort(descending=True)[:count]]

    def roi_of(self, box: np.ndarray) -> tuple[LayerOffsets, int] | None:
        """
        The RoI that overlaps a detection most, among those with offsets of their own class if
        there are such.

        Args:
            box: (4,), in pixels of the network input
        Returns:
            a pooling and the index of a RoI in it, or None if there is no deformable pooling
        """
        best, key = None, (0, -1.0)
        for entry in self.poolings:
            if len(entry.rois):
                rois = Boxes(torch.from_numpy(entry.rois[:, 1:]).float())
                iou = pairwise_iou(rois, Boxes(torch.from_numpy(box[None]).float()))[:, 0]
                candidate = (entry.offset.shape[1], float(iou.max()))
                if candidate > key:
                    best, key = (entry, int(iou.argmax())), candidate
        return best


@torch.no_grad()
def record_image(predictor: DefaultPredictor, image: np.ndarray) -> ImageOffsets:
    """
    Args:
        predictor: of any model
        image: (H, W, 3), uint8, BGR
    Raises:
        ValueError: if the model has no deformable layer
        NarrowImageError: if the image is too narrow for it
    """
    with narrow_images_refused(predictor, image):
        return _record(predictor, image)


def _record(predictor: DefaultPredictor, image: np.ndarray) -> ImageOffsets:
    model = predictor.model
    if predictor.input_format == "RGB":
        image = image[:, :, ::-1]
    resized = predictor.aug.get_transform(image).apply_image(image)
    height, width = resized.shape[:2]
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    padded = []
    handle = model.backbone.register_forward_pre_hook(
        lambda module, args: padded.append(args[0].shape[-2:])
    )
    try:
        with record_offsets(model) as recorded:
            output = model([{"image": tensor, "height": height, "width": width}])[0]
    finally:
        handle.remove()
    convs, strides, poolings = {}, {}, []
    for name, calls in recorded.items():
        for i, entry in enumerate(calls):
            if isinstance(entry.layer, DeformROIPool):
                poolings.append(entry)
                continue
            if name.startswith("roi_heads."):  # its maps are of RoIs, not of the image
                continue
            label = name if len(calls) == 1 else f"{name}[{i}]"
            convs[label] = entry
            # Maps are a little larger or smaller than the input divided by their stride.
            strides[label] = 2 ** round(np.log2(padded[0][0] / entry.offset.shape[-2]))
    if not convs and not poolings:
        raise ValueError(
            "The model has no deformable layer: name a config with deformable convolutions or "
            "deformable RoI pooling."
        )
    return ImageOffsets(
        size=(height, width),
        scale=(width / image.shape[1], height / image.shape[0]),
        convs=convs,
        strides=strides,
        poolings=poolings,
        instances=output["instances"].to("cpu") if "instances" in output else None,
    )
