"""What the RoI pooling operators share, as csrc/common/roi_region.h has it."""

import numpy as np
from onnxscript import ir
from onnxscript import opset18 as op

from .graph import INT64, constant, real_dtype, sizes, to_real


def roi_regions(input, rois, spatial_scale: float, shift: float):
    """
    Returns:
        (image index, int64, and for y and for x (start, length) in cells of the map), all (R, 1).
            A RoI on no image of the batch, or with a corner that is not finite, starts at -infinity
    """
    real = real_dtype(input)
    rois = to_real(rois, input)
    zero, smallest = constant(0, real), constant(0.1, real)

    def corner(columns) -> ir.Value:
        rounded = _round(op.Gather(rois, constant(columns, INT64), axis=1), real)
        scaled = op.Mul(rounded, constant(spatial_scale, real))
        return op.Sub(scaled, constant(shift, real)) if shift else scaled

    start = corner([2, 1])
    length = op.Sub(corner([4, 3]), start)
    image = op.Gather(rois, constant([0], INT64), axis=1)

    largest = constant(np.finfo(real.numpy()).max, real)
    finite = op.LessOrEqual(op.Abs(op.Concat(start, length, axis=1)), largest)
    finite = op.ReduceMin(op.Cast(finite, to=real), constant([1], INT64))
    in_batch = op.And(op.GreaterOrEqual(image, zero), op.Less(image, sizes(input, real)[0]))
    usable = op.And(in_batch, op.Greater(finite, zero))

    image = op.Cast(op.Where(usable, image, zero), to=INT64)
    start = op.Where(usable, start, constant(-np.inf, real))
    longer = op.And(usable, op.Greater(length, smallest))
    length = op.Where(longer, length, smallest)
    axes = [constant([axis], INT64) for axis in range(2)]
    return image, [[op.Gather(t, axis, axis=1) for t in (start, length)] for axis in axes]


def _round(x: ir.Value, real: ir.DataType) -> ir.Value:
    """To whole numbers, halves away from zero; ONNX's Round takes halves to even numbers."""
    size = op.Abs(x)
    floor = op.Floor(size)
    upwards = op.GreaterOrEqual(op.Sub(size, floor), constant(0.5, real))
    rounded = op.Where(upwards, op.Add(floor, constant(1, real)), floor)
    return op.Where(op.Less(x, constant(0, real)), op.Neg(rounded), rounded)


def bin_edges(start, length, pooled: int, real: ir.DataType) -> ir.Value:
    """(R, pooled + 1), along one axis."""
    bin_length = op.Div(length, constant(pooled, real))
    return op.Add(op.Mul(constant(np.arange(pooled + 1), real), bin_length), start)


def group_of_bins(pooled: int, group: int) -> np.ndarray:
    """(pooled,): along one axis, the one of `group` cells that each bin belongs to."""
    return np.arange(pooled) * group // pooled


def group_cells(output_size, group_size) -> np.ndarray:
    """(pooled_h, pooled_w): the cell of the group that a bin falls into."""
    rows, columns = map(group_of_bins, output_size, group_size)
    return rows[:, None] * group_size[1] + columns
