import numpy as np

from .recorded_offsets import LayerOffsets

__all__ = ["offset_magnitude"]


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
