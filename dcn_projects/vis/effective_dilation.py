"""
How far deformable filters reach, on objects of different sizes (arXiv 1703.06211, Sec. 4.2).

The paper gives neither the sizes nor what counts where objects overlap: here the sizes are COCO's
by default, and the smallest object at a place counts.
"""

from collections import defaultdict

import numpy as np
from tabulate import tabulate

from .recorded_offsets import LayerOffsets

__all__ = ["SIZES", "DilationStatistics", "effective_dilation", "object_sizes"]

SIZES = ("small", "medium", "large", "background")


def effective_dilation(entry: LayerOffsets) -> np.ndarray:
    """
    The mean of the distances between all adjacent pairs of sampling locations of a filter, in rows
    and in columns. Without offsets it is the dilation.

    Args:
        entry: a deformable convolution with more than one tap, as recorded
    Returns:
        ndarray: (N, deformable groups, H, W), in cells of the layer's input map
    """
    conv = entry.layer
    N, _, H, W = entry.offset.shape
    offset = entry.offset.reshape(N, -1, *conv.kernel_size, 2, H, W)
    groups = offset.shape[1]
    grid = np.stack(np.mgrid[: conv.kernel_size[0], : conv.kernel_size[1]], axis=-1)
    location = offset + (grid * np.array(conv.dilation))[..., None, None]
    distances = [
        np.linalg.norm(np.diff(location, axis=axis), axis=4).reshape(N, groups, -1, H, W)
        for axis in (2, 3)
    ]
    return np.concatenate(distances, axis=2).mean(axis=2)


def object_sizes(
    shape: tuple[int, int],
    stride: int,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    areas: np.ndarray,
    limits: tuple[float, float] = (32, 96),
) -> np.ndarray:
    """
    Which size of object the centre of a filter lies on.

    Args:
        shape: rows and columns of the layer's output map
        stride: pixels of the network input per cell of that map
        image_size: height and width of the network input without padding
        boxes: (n, 4), objects in pixels of the network input
        areas: (n,), of the objects in pixels of the image
        limits: sides of the squares from which on an object is medium and large
    Returns:
        ndarray: `shape`, index into SIZES, -1 for cells in the padding
    """
    y, x = (np.arange(n) * stride + stride / 2 for n in shape)
    sizes = np.full(shape, SIZES.index("background"))
    for i in np.argsort(-areas, kind="stable"):  # the smallest last
        x0, y0, x1, y1 = boxes[i]
        inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
        sizes[inside] = int(areas[i] >= limits[0] ** 2) + int(areas[i] >= limits[1] ** 2)
    sizes[y >= image_size[0]] = -1
    sizes[:, x >= image_size[1]] = -1
    return sizes


class DilationStatistics:
    """Mean and standard deviation of the effective dilation per layer and size of objects."""

    def __init__(self):
        # layer -> count, sum and sum of squares per size
        self._sums = defaultdict(lambda: np.zeros((len(SIZES), 3)))

    def add(self, layer: str, dilation: np.ndarray, sizes: np.ndarray):
        """
        Args:
            layer: name
            dilation: (groups, H, W), of one image; every group is a filter of its own
            sizes: (H, W), see `object_sizes`
        """
        for k in range(len(SIZES)):
            values = dilation[:, sizes == k].astype(np.float64)
            self._sums[layer][k] += values.size, values.sum(), (values**2).sum()

    def results(self) -> dict[str, dict[str, dict]]:
        """
        Returns:
            dict: layer -> size -> "mean", "std" (None without filters) and "count"
        """
        results = {}
        for layer, sums in self._sums.items():
            results[layer] = {}
            for size, (count, total, squares) in zip(SIZES, sums):
                mean = std = None
                if count:
                    mean = total / count
                    std = max(squares / count - mean**2, 0) ** 0.5
                results[layer][size] = {"mean": mean, "std": std, "count": int(count)}
        return results

    def table(self) -> str:
        """As Table 2 of the paper has them."""

        def cell(entry):
            return f"{entry['mean']:.2f} ± {entry['std']:.2f}" if entry["count"] else "-"

        rows = [[layer, *map(cell, sizes.values())] for layer, sizes in self.results().items()]
        return tabulate(rows, ["layer", *SIZES], tablefmt="pipe")
