"""What the graphs share: the dtype to compute in, constants, sizes."""

from collections.abc import Sequence

import numpy as np
from onnxscript import ir
from onnxscript import opset18 as op

INT64 = ir.DataType.INT64


def real_dtype(input: ir.Value) -> ir.DataType:
    """The dtype of coordinates and sums: float64 for float64 and float32 for all others."""
    return ir.DataType.DOUBLE if input.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def to_real(value: ir.Value, input: ir.Value) -> ir.Value:
    """An input of the operator, in the dtype to compute in."""
    real = real_dtype(input)
    return value if value.dtype == real else op.Cast(value, to=real)


def to_dtype_of(input: ir.Value, out: ir.Value) -> ir.Value:
    """A result, from the dtype to compute in."""
    return out if input.dtype == real_dtype(input) else op.Cast(out, to=input.dtype)


def constant(values, dtype: ir.DataType) -> ir.Value:
    """Typed: beside a value whose dtype is not inferred yet, a bare number would be float32."""
    return op.Constant(value=ir.tensor(np.asarray(values, dtype.numpy())))


def sizes(value: ir.Value, dtype: ir.DataType = INT64) -> list[ir.Value]:
    """Each size of an input of the operator, of shape (1,)."""
    shapes = [op.Shape(value, start=axis, end=axis + 1) for axis in range(len(value.shape))]
    return shapes if dtype == INT64 else [op.Cast(shape, to=dtype) for shape in shapes]


def fixed_size(what: str, value: ir.Value, axis: int) -> int:
    """
    Raises:
        ValueError: if the size is dynamic
    """
    size = value.shape[axis]
    if not isinstance(size, int):
        raise ValueError(f"the number of {what} must not be dynamic, but is {size}")
    return size


def grid(count: ir.Value, dtype: ir.DataType) -> ir.Value:
    """0, 1, ..., count - 1; count is an int64 of shape (1,)."""
    zero, one = constant(0, INT64), constant(1, INT64)
    return op.Cast(op.Range(zero, op.Squeeze(count), one), to=dtype)


def reshape(value: ir.Value, shape: Sequence[int | ir.Value]) -> ir.Value:
    """`shape` holds numbers, -1 among them, and int64 values of shape (1,)."""
    parts = [constant([part], INT64) if isinstance(part, int) else part for part in shape]
    return op.Reshape(value, op.Concat(*parts, axis=0))
