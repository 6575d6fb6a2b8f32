from collections.abc import Sequence

import numpy as np
from onnxscript import ir
from onnxscript import opset18 as op

from .graph import INT64, constant, fixed_size, real_dtype, reshape, sizes, to_dtype_of, to_real
from .roi_region import bin_edges, group_cells, group_of_bins, roi_regions

INT32 = ir.DataType.INT32


def deform_roi_pool(
    input,
    rois,
    offset,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
    group_size: Sequence[int],
):
    """
    The samples of a bin form a grid, so that a bin is a weighted sum over rows of weighted sums
    over columns. One row of all bins is gathered at a time, from a table whose rows hold the
    channels that one bin reads in one cell of the map.
    """
    real = real_dtype(input)
    classes = 1 if offset is None else fixed_size("offset planes", offset, 1) // 2
    parts = group_size[0] * group_size[1]
    D = fixed_size("channels", input, 1) // parts
    N, _, *map_size = sizes(input)
    maps = reshape(to_real(input, input), [N, classes, D // classes, parts, *map_size])
    table = reshape(op.Transpose(maps, perm=[0, 4, 5, 3, 1, 2]), [-1, D // classes])

    image, axes = roi_regions(input, rois, spatial_scale, 0.5)
    moves = [None, None]
    if offset is not None:
        moves = _moves_of_bins(input, offset, output_size, gamma)
    (rows, row_weights), (columns, column_weights) = (
        _taps(
            _samples(*axes[axis], moves[axis], axis, output_size[axis], sampling_ratio, real),
            map_size[axis],
            real,
        )
        for axis in range(2)
    )

    # int32: these are the largest of all tensors where the classes have offsets of their own.
    H, W = (op.Cast(size, to=INT32) for size in map_size)
    selected = group_cells(output_size, group_size) * classes + np.arange(classes)[:, None, None]
    columns = op.Mul(columns, constant([parts * classes], INT32))
    columns = op.Add(columns, constant(selected[..., None], INT32))
    image = op.Unsqueeze(op.Cast(image, to=INT32), constant([2, 3, 4], INT64))
    rows = op.Mul(op.Add(op.Mul(image, H), rows), op.Mul(W, constant([parts * classes], INT32)))

    total = None
    for tap in range(2 * sampling_ratio):
        this = constant([tap], INT64)
        index = op.Add(op.Gather(rows, this, axis=4), columns)
        row = _weighted_cells(table, index, column_weights, D // classes)
        row = op.Mul(row, op.Gather(row_weights, this, axis=4))
        total = row if total is None else op.Add(total, row)
    pooled = reshape(op.Transpose(total, perm=[0, 1, 4, 2, 3]), [-1, D, *output_size])
    return to_dtype_of(input, pooled)


def _weighted_cells(table, index, weights, channels: int) -> ir.Value:
    """Sums over the last axis of `index`: (..., channels)."""
    last, vector = constant([-1], INT64), constant([-2], INT64)
    if channels == 1:
        # Three times faster than copying and multiplying vectors of length 1.
        values = op.GatherElements(op.Reshape(table, last), op.Reshape(index, last))
        values = op.Reshape(values, op.Shape(index))
        return op.ReduceSum(op.Mul(values, weights), last)
    values = op.Gather(table, index)
    return op.Squeeze(op.MatMul(op.Unsqueeze(weights, vector), values), vector)


def _moves_of_bins(input, offset, output_size, gamma) -> list[ir.Value]:
    """By y and by x, in lengths of the RoI: (R, classes, pooled_h, pooled_w)."""
    planes = fixed_size("offset planes", offset, 1)
    moves = op.Mul(to_real(offset, input), constant(gamma, real_dtype(input)))
    for axis, pooled in zip((2, 3), output_size):
        part = group_of_bins(pooled, fixed_size("offset parts", offset, axis))
        moves = op.Gather(moves, constant(part, INT64), axis=axis)
    return [op.Gather(moves, constant(np.arange(k, planes, 2), INT64), axis=1) for k in (1, 0)]


def _samples(start, length, moves, axis, pooled, sampling_ratio, real) -> ir.Value:
    """Positions along one axis: (R, classes, pooled_h, pooled_w, S), or 1 where all are equal."""
    bins = constant(np.arange(pooled), INT64)
    bins = op.Gather(bin_edges(start, length, pooled, real), bins, axis=1)
    bins = op.Unsqueeze(bins, constant([1, 3 - axis], INT64))
    length = op.Unsqueeze(length, constant([2, 3], INT64))
    if moves is not None:
        bins = op.Add(op.Mul(moves, length), bins)
    step = op.Div(op.Div(length, constant(pooled, real)), constant(sampling_ratio, real))
    last = constant([4], INT64)
    steps = op.Mul(constant(np.arange(sampling_ratio), real), op.Unsqueeze(step, last))
    return op.Add(op.Unsqueeze(bins, last), steps)


def _taps(position, size, real) -> tuple[ir.Value, ir.Value]:
    """
    Returns:
        cells that the samples of a bin read along one axis, int32, and what they weigh in its mean:
            (..., S) -> (..., 2 * S)
    """
    zero, half, one = (constant(value, real) for value in (0, 0.5, 1))
    last = op.Sub(op.Cast(size, to=real), one)
    counts = op.And(
        op.GreaterOrEqual(position, op.Neg(half)), op.LessOrEqual(position, op.Add(last, half))
    )
    position = op.Where(counts, op.Min(op.Max(position, zero), last), zero)
    counts = op.Cast(counts, to=real)
    counts = op.Div(counts, op.Max(op.ReduceSum(counts, constant([-1], INT64)), one))
    low = op.Floor(position)
    ahead = op.Mul(counts, op.Sub(position, low))
    cells = op.Concat(low, op.Ceil(position), axis=-1)
    return op.Cast(cells, to=INT32), op.Concat(op.Sub(counts, ahead), ahead, axis=-1)
