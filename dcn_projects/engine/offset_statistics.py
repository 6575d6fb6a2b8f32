import logging
import math

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from dcn_projects.layers import DeformROIPool, hook_offsets
from dcn_projects.layers.roi_region import roi_regions
from dcn_projects.layers.sampling import (
    moves_of_bins,
    sample_positions,
    samples_inside,
    tap_positions,
    taps_inside,
)

__all__ = ["OffsetStatistics"]


class OffsetStatistics(HookBase):
    """
    Every `period` iterations, what the offsets of each deformable layer are, over all of its calls
    and all processes, into the event storage:

        offsets/<layer>/mean, max    length of the offsets, in pixels of the map that is read
        offsets/<layer>/outside      share of the sampling points that read nothing, as they are
                                     outside of the map; some are without offsets: taps on padding

    An offset that is not finite ends the training, as it reads zeros and would go unnoticed; one
    that is larger than the map makes a warning. Both name the layer. Between the iterations that
    are measured nothing is computed, and the GPU is waited for once in those that are.
    """

    def __init__(self, period: int):
        """
        Args:
            period: iterations; 0 measures nothing
        """
        self.period = period
        self._handles, self._measured = [], {}

    def before_step(self):
        if self.period > 0 and (self.trainer.iter + 1) % self.period == 0:
            model = self.trainer.model
            model = getattr(model, "module", model)  # within DistributedDataParallel
            self._handles = hook_offsets(model, self._measure)

    def after_step(self):
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, measured, self._measured = [], self._measured, {}
        rows = torch.stack(list(measured.values())).cpu() if measured else []
        of_processes, measured = comm.all_gather(dict(zip(measured, rows))), {}
        for of_process in of_processes:
            for name, row in of_process.items():
                _add(measured, name, row)
        for name, row in measured.items():
            count, points, total, read, longest, reach = row.tolist()
            self._guard(name, longest, reach)
            statistics = {"mean": total / count, "max": longest, "outside": 1 - read / points}
            for key, value in statistics.items():
                self.trainer.storage.put_scalar(
                    f"offsets/{name}/{key}", value, smoothing_hint=False
                )

    def _guard(self, name: str, longest: float, reach: float) -> None:
        if not math.isfinite(longest):
            raise FloatingPointError(
                f"iteration {self.trainer.iter}: {name} has offsets that are not finite. "
                "SOLVER.LR_FACTORS sets how fast they learn."
            )
        if reach > 1:
            logging.getLogger(__name__).warning(
                f"Iteration {self.trainer.iter}: {name} has an offset of {reach:.1f} times the "
                "size of its feature map. SOLVER.LR_FACTORS sets how fast offsets learn."
            )

    @torch.no_grad()
    def _measure(self, name, layer, input, offset, rois):
        if offset.numel() == 0:
            return
        if isinstance(layer, DeformROIPool):
            dy, dx, read, points = _of_pooling(layer, input, offset, rois)
        else:
            dy, dx, read, points = _of_convolution(layer, input, offset)
        lengths = torch.hypot(dy, dx)
        reach = torch.maximum(dy.abs().max() / input.shape[2], dx.abs().max() / input.shape[3])
        # Numbers of the host are filled in by kernels: a copy would wait for the GPU.
        counts = [lengths.new_full((), n) for n in (lengths.numel(), points)]
        row = [*counts, lengths.sum(), read, lengths.max(), reach]
        _add(self._measured, name, torch.stack([t.double() for t in row]))


def _add(measured: dict[str, Tensor], name: str, row: Tensor) -> None:
    """Row: offsets, sampling points, sum of lengths, points that read something; two maxima."""
    if name in measured:
        old = measured[name]
        row = torch.cat([old[:4] + row[:4], torch.maximum(old[4:], row[4:])])  # NaN stays NaN
    measured[name] = row


def _of_convolution(layer: nn.Module, input: Tensor, offset: Tensor) -> tuple:
    """
    Returns:
        dy, dx: offsets of all samples, in pixels of the map
        read: number of samples that read something, as a tensor
        points: number of samples
    """
    positions = tap_positions(
        offset.float(), layer.kernel_size, layer.stride, layer.padding, layer.dilation
    )
    dy, dx = offset.float().reshape(positions.shape).unbind(4)
    inside = taps_inside(positions, input.shape[2:], layer.legacy_border)
    return dy, dx, inside.all(4).sum(), dy.numel()


def _of_pooling(layer: DeformROIPool, input: Tensor, offset: Tensor, rois: Tensor) -> tuple:
    """As `_of_convolution`, with the offsets of all bins."""
    _, start, length = roi_regions(
        "deform_roi_pool", rois, len(input), layer.spatial_scale, 0.5, torch.float32
    )
    moves, reads = [], []
    for axis, move in enumerate(moves_of_bins(offset.float(), layer.output_size)):
        moves.append(layer.gamma * move * length[axis].view(-1, 1, 1, 1))
        positions = sample_positions(
            axis, start[axis], length[axis], move, layer.gamma, layer.sampling_ratio
        )
        reads.append(samples_inside(positions, input.shape[2 + axis]).sum(-1))
    return *moves, (reads[0] * reads[1]).sum(), moves[0].numel() * layer.sampling_ratio**2
