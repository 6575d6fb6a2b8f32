"""
Where the deformable layers of a model looked (arXiv 1703.06211, Fig. 5 to 7). Points and boxes are
NumPy arrays in the order of detectron2, (x, y) and (x0, y0, x1, y1), in pixels of the network
input; cells of a feature map are (row, column).
"""

import numpy as np

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
