"""What a pickle may name: the classes and functions of arrays, tensors and plain containers."""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from .plain_pickle import Named, PickledObjectError, check_size

__all__ = ["SET_STATE", "Storage", "find_plain", "new_storage"]

_NUMBERS = re.compile(r"[biuf][1248]|c8|c16|\?")
_MAX_DIMENSIONS = 64
_MAX_REPEATED = 2**24  # elements of a tensor that has one number in several places
# Modules that were renamed in Python 3 and in NumPy 2.
_RENAMED = {"__builtin__": "builtins", "numpy.core": "numpy._core"}


class Storage:
    """
    The numbers of tensors, which a file of PyTorch has beside its pickle.

    Args:
        content: their bytes
        dtype: of the numbers; None for bytes of any dtype
    """

    def __init__(self, content: torch.Tensor, dtype: torch.dtype | None):
        self.content, self.dtype = content, dtype
        self.itemsize = dtype.itemsize if dtype else 1

    def memory(self) -> memoryview:
        return memoryview(self.content.numpy())

    def check(self, kind, count) -> None:
        """Of each tensor that has its numbers here, what the pickle says must be the same."""
        if storage_dtype(kind) != self.dtype or count * self.itemsize != len(self.content):
            raise ValueError("numbers of two kinds in one place")

    def part(self, offset, count) -> "Storage":
        check_size(offset, count)
        start, end = offset * self.itemsize, (offset + count) * self.itemsize
        return Storage(self.content[start:end], self.dtype)

    def tensor(self, offset, size, stride, dtype: torch.dtype | None = None) -> torch.Tensor:
        check_size(offset, *size, *stride)
        if len(size) > _MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions")
        numbers = self.content.view(self.dtype or dtype)
        if 0 in size:
            return numbers.new_empty(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        most = max(len(numbers), _MAX_REPEATED)
        if len(size) != len(stride) or last >= len(numbers) or math.prod(size) > most:
            raise ValueError(f"a tensor of {tuple(size)} has {len(numbers)} numbers")
        return numbers.as_strided(size, stride, numbers.storage_offset() + offset)


def new_storage(kind, count, most: int) -> Storage:
    """
    Args:
        kind: the class that a pickle names
        count: of its numbers
        most: bytes that a file has for it
    """
    check_size(count)
    dtype = storage_dtype(kind)
    num_bytes = count * (dtype.itemsize if dtype else 1)
    if num_bytes > most:
        raise ValueError(f"{most} bytes are left, expected {num_bytes}")
    return Storage(torch.empty(num_bytes, dtype=torch.uint8), dtype)


def storage_dtype(kind) -> torch.dtype | None:
    """Of the class that a pickle names."""
    if not isinstance(kind, Named) or kind.name not in _STORAGES:
        raise ValueError("no storage of PyTorch")
    return _STORAGES[kind.name]


def find_plain(module: str, name: str):
    """
    Args:
        module, name: of a class or function
    Returns:
        what `read_plain_pickle` uses for it
    Raises:
        PickledObjectError: if it is not among those that arrays, tensors and containers need
    """
    for old, new in _RENAMED.items():
        if module == old or module.startswith(f"{old}."):
            module = new + module.removeprefix(old)
    full = f"{module}.{name}"
    if full in _PLAIN:
        return Named(full, _PLAIN[full])
    if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
        return dtype
    if full in _STORAGES:
        return Named(full, None)
    raise PickledObjectError(full)


class _Dtype:
    """A dtype of NumPy, which gets its byte order after it was made."""

    def __init__(self, name, *_):
        if type(name) is not str or not _NUMBERS.fullmatch(name):
            raise PickledObjectError(f"numpy.dtype {name!r:.40}")
        self.dtype = np.dtype(name)

    def set_state(self, state) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or rest[:3] != [None] * 3:
            raise PickledObjectError("numpy.dtype with fields")
        self.dtype = self.dtype.newbyteorder(order)


def _numbers(data, dtype, shape) -> tuple[bytes, np.dtype]:
    """The bytes of an array, of which a pickle of Python 2 makes text, and what they are."""
    data = data.encode("latin-1") if type(data) is str else data
    check_size(*shape)
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise ValueError("no array of numbers")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"an array of {tuple(shape)} has {len(data)} bytes")
    return data, dtype.dtype


def _new_array(kind, shape, _) -> np.ndarray:
    if getattr(kind, "name", "") != "numpy.ndarray" or shape != (0,):
        raise ValueError("no array of NumPy")
    return np.empty(0, np.int8)


def _set_array(array: np.ndarray, state) -> None:
    _, shape, dtype, by_columns, data = state
    data, dtype = _numbers(data, dtype, shape)
    array.__setstate__((1, tuple(shape), dtype, bool(by_columns), bytes(data)))


def _buffer_array(data, dtype, shape, order) -> np.ndarray:
    data, dtype = _numbers(data, dtype, shape)
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype, data) -> np.generic:
    return np.frombuffer(*_numbers(data, dtype, (1,)))[0]


def _encode(text, encoding="latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("no bytes")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """As pickles for Python 2 have them."""
    return b""


def _ordered(items: Iterable = ()) -> OrderedDict:
    pairs = [(key, value) for key, value in items]
    if not all(type(key) is str for key, _ in pairs):
        raise PickledObjectError("a dictionary whose keys are no texts")
    return OrderedDict(pairs)


def _counter(counts: Mapping = ()) -> Counter:
    counts = dict(counts)
    check_size(*counts.values())
    return Counter(counts)


def _set(values=()) -> set:
    if type(values) is not list or not all(type(value) in (str, int) for value in values):
        raise PickledObjectError("a set of something else than texts and numbers")
    return set(values)


def _size(values=()) -> torch.Size:
    check_size(*values)
    return torch.Size(values)


def _box_mode(number) -> int:
    check_size(number)
    return number


def _tensor(storage, offset, size, stride, _=False, __=None, flags=None) -> torch.Tensor:
    if flags:  # conjugate or negative views
        raise PickledObjectError("tensors that are views of other numbers")
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise ValueError("no storage of a tensor")
    return storage.tensor(offset, size, stride)


def _tensor_of_bytes(storage, offset, size, stride, _, __, dtype, *___) -> torch.Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise ValueError("no storage of a tensor")
    return storage.tensor(offset, size, stride, dtype)


def _parameter(tensor, *_) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise ValueError("no tensor for a parameter")
    return tensor


def _tensor_with_attributes(function, _, arguments, __) -> torch.Tensor:
    if function.name not in (f"torch._utils.{name}" for name in _TENSORS):
        raise PickledObjectError(function.name)
    return function.call(*arguments)


def _device(*_) -> None:
    """All is read to the CPU."""


_TENSORS = {
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _tensor_of_bytes,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}
_WITH_ATTRIBUTES = "_rebuild_from_type_v2"  # of Python, which are left out
_PLAIN = {
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "builtins.set": _set,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": None,
    "numpy._core.multiarray._reconstruct": _new_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _buffer_array,
    "detectron2.structures.boxes.BoxMode": _box_mode,  # in files of proposals
    "torch.Size": _size,
    "torch.Tensor": None,
    "torch.device": _device,
    "torch.nn.parameter.Parameter": None,
    f"torch._tensor.{_WITH_ATTRIBUTES}": _tensor_with_attributes,
    **{f"torch._utils.{name}": call for name, call in _TENSORS.items()},
}
# Classes by whose names a file tells the dtype of its numbers.
_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": None,
}
SET_STATE = {_Dtype: _Dtype.set_state, np.ndarray: _set_array}
