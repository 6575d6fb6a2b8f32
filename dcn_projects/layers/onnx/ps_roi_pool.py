from collections.abc import Sequence

import numpy as np
from onnxscript import ir
from onnxscript import opset18 as op

from .graph import (
    INT64,
    constant,
    fixed_size,
    real_dtype,
    reshape,
    sizes,
)
from .roi_region import bin_edges, group_cells, roi_regions


def ps_roi_pool(
    input, rois, output_size: Sequence[int], spatial_scale: float, group_size: Sequence[int]
):
    """
    The sum of a bin from four values of the summed-area table. In float64, as a table in float32
    would have no digits left for small bins far from its origin.
    """
    real = real_dtype(input)
    N, _, H, W = sizes(input)
    image, axes = roi_regions(input, rois, spatial_scale, 0)
    (top, bottom), (left, right) = (
        _bin_cells(*axis, pooled, size, real)
        for axis, pooled, size in zip(axes, output_size, (H, W))
    )
    one = constant([1], INT64)
    cells = group_size[0] * group_size[1]
    D = fixed_size("channels", input, 1) // cells

    maps = reshape(input, [N, D, cells, H, W])
    maps = op.Cast(op.Transpose(maps, perm=[0, 3, 4, 2, 1]), to=ir.DataType.DOUBLE)
    maps = op.Pad(maps, constant([0, 1, 1] + [0] * 7, INT64))
    table = op.CumSum(op.CumSum(maps, constant(1, INT64)), constant(2, INT64))
    table = reshape(table, [-1, D])
    wide, image_start = op.Add(W, one), op.Mul(image, op.Add(H, one))

    def summed(y, x) -> ir.Value:
        """(R, pooled_h, pooled_w, D): sums of all cells above y and left of x."""
        row = op.Unsqueeze(op.Mul(op.Add(image_start, y), wide), constant([2], INT64))
        index = op.Mul(op.Add(row, op.Unsqueeze(x, one)), constant([cells], INT64))
        index = op.Add(index, constant(group_cells(output_size, group_size), INT64))
        return op.Gather(table, index, axis=0)

    total = op.Sub(
        op.Sub(summed(bottom, right), summed(top, right)),
        op.Sub(summed(bottom, left), summed(top, left)),
    )
    height = op.Unsqueeze(op.Sub(bottom, top), constant([2, 3], INT64))
    width = op.Unsqueeze(op.Sub(right, left), constant([1, 3], INT64))
    count = op.Max(op.Mul(height, width), one)
    mean = op.Div(total, op.Cast(count, to=ir.DataType.DOUBLE))
    mean = op.Transpose(mean, perm=[0, 3, 1, 2])
    return mean if input.dtype == ir.DataType.DOUBLE else op.Cast(mean, to=input.dtype)


def _bin_cells(start, length, pooled, size, real) -> list[ir.Value]:
    """First cell that each bin touches and the one behind its last, clipped to the map: (R, P)."""
    edges = bin_edges(start, length, pooled, real)
    size, zero = op.Cast(size, to=real), constant(0, real)
    bins = np.arange(pooled)
    return [
        op.Cast(op.Min(op.Max(whole(op.Gather(edges, k, axis=1)), zero), size), to=INT64)
        for whole, k in [(op.Floor, constant(bins, INT64)), (op.Ceil, constant(bins + 1, INT64))]
    ]
