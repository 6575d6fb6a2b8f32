"""The offsets with which the deformable layers of a model ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from dcn_projects.layers import hook_offsets

__all__ = ["LayerOffsets", "record_offsets"]


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
