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
import torch
from torch import nn

from dcn_projects.layers import hook_offsets
from dcn_projects.layers.roi_region import roi_regions
from dcn_projects.layers.sampling import bin_starts, moves_of_bins, tap_positions

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
        offset = torch.from_numpy(entry.offset[image : image + 1]).double()
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        positions = tap_positions(offset, *geometry)[0, group].flatten(0, 1).numpy()
        points = positions[:, :, q[:, 0], q[:, 1]].transpose(2, 0, 1).reshape(-1, 2)
    return points


def roi_bins(entry: LayerOffsets, roi: int, category: int) -> np.ndarray:
    """
    Args:
        entry: a deformable RoI pooling, as recorded
        roi: index of the RoI
        category: class whose offsets are used; ignored where all classes share them
    Returns:
        ndarray: (part * part, 4), the bins of the RoI, each moved by gamma * RoI size * offset;
            corners are rounded as the operator rounds them
    """
    layer, rois = entry.layer, torch.from_numpy(entry.rois[roi : roi + 1])
    images, offset = int(rois[0, 0]) + 1, torch.from_numpy(entry.offset[roi : roi + 1]).double()
    shift = 0.5  # cells, from their corners to their centres
    _, start, length = roi_regions(
        "roi_bins", rois, images, layer.spatial_scale, shift, torch.float64
    )
    moves = moves_of_bins(offset, offset.shape[2:])
    k = category if moves.shape[2] > 1 else 0
    corners = []
    for axis in (1, 0):  # x, y
        first = bin_starts(axis, start[axis], length[axis], moves[axis], layer.gamma)[0, k]
        corners.append((first + shift) / layer.spatial_scale)
    first = torch.stack(corners, -1).view(-1, 2).numpy()
    rows, columns = offset.shape[2:]
    size = length[:, 0].numpy()[::-1] / layer.spatial_scale / (columns, rows)
    return np.concatenate((first, first + size), axis=1)


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
