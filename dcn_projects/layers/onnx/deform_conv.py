from collections.abc import Sequence

import numpy as np
from onnxscript import ir
from onnxscript import opset19 as op

from .graph import INT64, constant, fixed_size, grid, real_dtype, sizes, to_dtype_of, to_real

# No map has a pixel there, and float32 has whole numbers around it.
OUTSIDE = -(2.0**23)


def deform_conv(
    input,
    offset,
    weight,
    mask,
    bias,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    legacy_border: bool,
):
    """The standard operator DeformConv, whose layouts are those of the operator."""
    kernel = [fixed_size("taps", weight, axis) for axis in (2, 3)]
    channels = fixed_size("offset channels", offset, 1)
    moved = to_real(offset, input)
    if legacy_border:
        taps = np.stack(np.indices(kernel), -1) * dilation - padding
        moved = _legacy_offset(input, moved, np.resize(taps, channels), sizes(offset)[2:], stride)
    else:
        # The standard does not define NaN, and some runtimes convert it to an index.
        moved = op.Where(op.IsNaN(moved), constant(OUTSIDE, real_dtype(input)), moved)
    out = op.DeformConv(
        to_real(input, input),
        to_real(weight, input),
        moved,
        None if bias is None else to_real(bias, input),
        None if mask is None else to_real(mask, input),
        kernel_shape=kernel,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=fixed_size("channels", input, 1) // fixed_size("channels", weight, 1),
        offset_group=channels // (2 * kernel[0] * kernel[1]),
    )
    return to_dtype_of(input, out)


def _legacy_offset(input, offset, taps, out_size, stride) -> ir.Value:
    """
    The border of 2017 on DeformConv, whose map goes on with zeros: offsets that do not count lead
    far outside, and those behind the last row or column onto it. Exact, since whole numbers are.

    Args:
        taps: (channels of `offset`,), y or x of the tap that the channel moves, in output cell 0
    """
    real = real_dtype(input)
    is_y = np.resize([1, 0], (len(taps), 1, 1))

    def by_axis(y, x) -> ir.Value:
        y, x = op.Mul(y, constant(is_y, real)), op.Mul(x, constant(1 - is_y, real))
        return op.Add(y, x)

    rows, columns = (
        op.Mul(grid(count, real), constant(step, real)) for count, step in zip(out_size, stride)
    )
    start = op.Add(
        by_axis(op.Unsqueeze(rows, constant([1], INT64)), columns),
        constant(taps.reshape(-1, 1, 1), real),
    )
    size = by_axis(*sizes(input, real)[2:])
    position = op.Add(start, offset)
    counts = op.And(
        op.GreaterOrEqual(position, constant(0, real)),
        op.Less(position, size),
    )
    last = op.Sub(op.Sub(size, constant(1, real)), start)
    return op.Where(counts, op.Min(offset, last), op.Sub(constant(OUTSIDE, real), start))
