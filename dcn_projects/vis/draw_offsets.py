"""Pictures of where deformable layers look. They are (H, W, 3) arrays, uint8, BGR."""

import cv2
import numpy as np

from .image_offsets import ImageOffsets
from .offset_magnitude import offset_magnitude
from .pictures import text_line
from .recorded_offsets import LayerOffsets
from .sampling_locations import roi_bins

__all__ = ["OffsetPictures", "draw_deformed_bins", "draw_heat_map", "draw_sampling_locations"]

_RED, _GREEN, _BLUE = (0, 0, 255), (0, 255, 0), (255, 0, 0)  # BGR


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


def draw_heat_map(picture: np.ndarray, values: np.ndarray, stride: float, title: str) -> np.ndarray:
    """
    Args:
        picture: (H, W, 3) uint8, BGR; not changed
        values: (rows, columns), from 0 (blue) to their maximum (red)
        stride: pixels of the picture per cell; what hangs over the picture is cut off
        title: written above the picture, before mean and maximum
    Returns:
        ndarray: the heat map over the picture, with a line of text above it
    """
    height, width = picture.shape[:2]
    levels = np.uint8(np.rint(255 * values / max(values.max(), 1e-12)))
    cells = cv2.applyColorMap(levels, cv2.COLORMAP_JET)
    # Cell i covers the pixels from i * stride on.
    row, column = ((np.arange(n) / stride).astype(int) for n in (height, width))
    heat = cells[np.minimum(row, len(cells) - 1)][:, np.minimum(column, cells.shape[1] - 1)]
    drawn = cv2.addWeighted(picture, 0.5, heat, 0.5, 0)
    text = f"{title}: mean {values.mean():.2f}, max {values.max():.2f} cells"
    return np.vstack((text_line(text, width), drawn))


class OffsetPictures:
    """One image, drawn once more for each thing that is shown of its deformable layers."""

    def __init__(self, image: np.ndarray, offsets: ImageOffsets, zoom: float):
        """
        Args:
            image: (H, W, 3), uint8, BGR
            offsets: what was recorded of it
            zoom: pixels of the pictures per pixel of the network input
        """
        self.offsets, self.zoom = offsets, zoom
        size = [round(n * zoom) for n in offsets.size[::-1]]
        self.plain = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)

    def sampling_locations(
        self, point: tuple[float, float], layers: int = 3, group: int = 0
    ) -> np.ndarray:
        """What the last convolutions, stacked, read. See `ImageOffsets.locations`."""
        locations = self.offsets.locations(point, layers, group)
        return draw_sampling_locations(self.plain, *locations, self.zoom)

    def deformed_bins(self, box: np.ndarray, category: int) -> np.ndarray | None:
        """
        Args:
            box: (4,), a detection in pixels of the network input
            category: its class
        Returns:
            ndarray: the bins of the RoI that overlaps it most; None without deformable pooling
        """
        found = self.offsets.roi_of(box)
        if found is not None:
            return draw_deformed_bins(self.plain, *found, category, self.zoom)

    def offset_magnitude(self, name: str) -> np.ndarray:
        """How far a convolution, one of `ImageOffsets.convs`, moves its taps."""
        values = offset_magnitude(self.offsets.convs[name])[0]
        stride = self.offsets.strides[name] * self.zoom
        return draw_heat_map(self.plain, values, stride, name)
