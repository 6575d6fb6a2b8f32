"""
Where the deformable layers of a model looked (arXiv 1703.06211, Fig. 5 to 7). Points and boxes are
NumPy arrays in the order of detectron2, (x, y) and (x0, y0, x1, y1), in pixels of the network
input; cells of a feature map are (row, column).
"""

import numpy as np
import torch

from dcn_projects.layers.roi_region import roi_regions
from dcn_projects.layers.sampling import bin_starts, moves_of_bins, tap_positions

from .recorded_offsets import LayerOffsets

__all__ = ["roi_bins", "sampling_locations"]


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
