import cv2
import numpy as np

from .sampling_locations import LayerOffsets

__all__ = ["draw_heat_map", "offset_magnitude"]


def offset_magnitude(entry: LayerOffsets) -> np.ndarray:
    """
    Args:
        entry: a deformable convolution, as recorded
    Returns:
        ndarray: (N, H, W), mean length of the offsets of all taps and groups, in cells of the
        layer's input map
    """
    N, _, H, W = entry.offset.shape
    return np.linalg.norm(entry.offset.reshape(N, -1, 2, H, W), axis=2).mean(axis=1)


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
    line = np.full((24, width, 3), 255, dtype=np.uint8)
    text = f"{title}: mean {values.mean():.2f}, max {values.max():.2f} cells"
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = min(0.45, (width - 8) / cv2.getTextSize(text, font, 1, 1)[0][0])
    cv2.putText(line, text, (4, 17), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack((line, drawn))
