"""
Where the deformable layers of a model looked (arXiv 1703.06211, Fig. 5 to 7). Points and boxes are
NumPy arrays in the order of detectron2, (x, y) and (x0, y0, x1, y1), in pixels of the network
input; cells of a feature map are (row, column).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from torch import nn

from dcn_projects.layers import hook_offsets

__all__ = [
    "draw_deformed_bins",
    "draw_sampling_locations",
    "record_offsets",
    "roi_bins",
    "sampling_locations",
]

_RED, _GREEN, _BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)  # BGR


@dataclass
class LayerOffsets:
    """A deformable layer, and the offsets (and RoIs) that it was last called with."""

    layer: nn.Module
    offset: np.ndarray
    rois: np.ndarray = None


@contextmanager
def record_offsets(model: nn.Module) -> Iterator[dict[str, list[LayerOffsets]]]:
    """
    Record the offsets of every deformable layer while the model runs:

        with record_offsets(model) as offsets:
            model(inputs)

    Yields:
        dict: name of the layer -> one entry per call, with offsets (N, 2 * groups * taps, H, W)
        of a convolution, or (R, 2 * n, part, part) and `rois` (R, 5) of a RoI pooling
    """
    recorded: dict[str, list[LayerOffsets]] = {}

    def record(name, layer, input, offset, rois):
        rois = None if rois is None else rois.detach().cpu().numpy()
        entry = LayerOffsets(layer, offset.detach().float().cpu().numpy(), rois)
        recorded.setdefault(name, []).append(entry)

    handles = hook_offsets(model, record)
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def sampling_locations(
    layers: list[LayerOffsets], cell: tuple[int, int], image: int = 0, group: int = 0
) -> np.ndarray:
    """
    Trace one output cell back through stacked deformable convolutions: the taps of the last are
    output cells of the one before, and so on. Other layers between them must be 1x1.

    Args:
        layers: from the first convolution to the last, as recorded
        cell: (row, column) in the output of the last
        image: index in the batch
        group: deformable group whose offsets are followed
    Returns:
        ndarray: (P, 2), fractional (row, column) in the input map of the first convolution. P is
        taps ** layers, less what starts from cells outside the map.
    """
    points = np.array([cell], dtype=np.float64)
    for entry in reversed(layers):
        conv = entry.layer
        rows, columns = entry.offset.shape[-2:]
        q = np.rint(points).astype(np.int64)
        q = q[((q >= 0) & (q < (rows, columns))).all(axis=1)]
        taps_y, taps_x = conv.kernel_size
        grid = np.stack(np.mgrid[:taps_y, :taps_x], axis=-1).reshape(1, -1, 2)
        base = (q * conv.stride - conv.padding)[:, None] + grid * np.array(conv.dilation)
        taps = taps_y * taps_x
        offset = entry.offset[image].reshape(-1, taps, 2, rows, columns)[group]
        offset = offset[:, :, q[:, 0], q[:, 1]].transpose(2, 0, 1)  # (points, taps, (y, x))
        points = (base + offset).reshape(-1, 2)
    return points


def roi_bins(entry: LayerOffsets, roi: int, category: int) -> np.ndarray:
    """
    Args:
        entry: a deformable RoI pooling, as recorded
        roi: index of the RoI
        category: class whose offsets are used; ignored where all classes share them
    Returns:
        ndarray: (part * part, 4), the bins of the RoI, each moved by gamma * RoI size * offset
    """
    x0, y0, x1, y1 = np.floor(entry.rois[roi, 1:] + 0.5)
    # A RoI has at least a tenth of a cell.
    size = np.maximum((x1 - x0, y1 - y0), 0.1 / entry.layer.spatial_scale)
    offset = entry.offset[roi].reshape(-1, 2, *entry.offset.shape[-2:])
    offset = offset[category if len(offset) > 1 else 0]
    rows, columns = offset.shape[1:]
    bin_size = size / (columns, rows)
    row, column = np.mgrid[:rows, :columns]
    start = np.stack(
        (
            x0 + column * bin_size[0] + entry.layer.gamma * size[0] * offset[0],
            y0 + row * bin_size[1] + entry.layer.gamma * size[1] * offset[1],
        ),
        axis=-1,
    ).reshape(-1, 2)
    return np.concatenate((start, start + bin_size), axis=1)


def draw_sampling_locations(
    picture: np.ndarray, points: np.ndarray, cell: tuple[int, int], stride: int, scale: float = 1
) -> np.ndarray:
    """
    Args:
        picture: (H, W, 3) uint8, BGR; not changed
        points: (P, 2), (row, column) in a map of `stride`, see `sampling_locations`
        cell: the output cell, in a map of the same stride
        stride: pixels of the network input per cell
        scale: pixels of the picture per pixel of the network input
    Returns:
        ndarray: the picture with red dots at the points and a green one at the cell
    """
    picture = picture.copy()
    for (row, column), color, radius in [(p, _RED, 3) for p in points] + [(cell, _GREEN, 5)]:
        # Fixed-point coordinates with 4 binary digits behind the point.
        center = [int(round((v + 0.5) * stride * scale * 16)) for v in (column, row)]
        cv2.circle(picture, center, radius * 16, color, cv2.FILLED, cv2.LINE_AA, 4)
    return picture


def draw_deformed_bins(
    picture: np.ndarray, entry: LayerOffsets, roi: int, category: int, scale: float = 1
) -> np.ndarray:
    """
    Args:
        picture: (H, W, 3) uint8, BGR; not changed
        entry, roi, category: see `roi_bins`
        scale: pixels of the picture per pixel of the network input
    Returns:
        ndarray: the picture with the RoI in blue and its bins in red
    """
    picture = picture.copy()
    boxes = [(b, _RED) for b in roi_bins(entry, roi, category)]
    for box, color in boxes + [(entry.rois[roi, 1:], _BLUE)]:
        x0, y0, x1, y1 = (int(round(float(v) * scale)) for v in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, 1, cv2.LINE_AA)
    return picture
