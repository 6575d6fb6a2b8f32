"""
The labels in a `.mat` file of the Semantic Boundaries Dataset (SBD). SciPy's reader of such files
ends the process on some that are damaged. All files of SBD have one form, for which little of the
format of MATLAB 5 is needed (MathWorks, "MAT-File Format", chapter 1).
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np

__all__ = ["read_sbd_labels"]

_HEADER = 128  # bytes, of which the last four are the version and the order of the bytes
_VERSION_5_LITTLE_ENDIAN = b"\x00\x01IM"
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15  # kinds of elements
_STRUCT = 2  # of the classes of arrays, as are those below
_NUMBERS = {6: "float64", 7: "float32", 8: "int8", 9: "uint8", 10: "int16", 11: "uint16"}
_NUMBERS |= {12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}
_LARGEST = 2**26  # bytes that are unpacked, of which an image of SBD needs less than 2**19
_LONGEST_NAME = 64  # characters of a field, with the zero at its end


def read_sbd_labels(content: bytes) -> np.ndarray:
    """
    Args:
        content: of a file of MATLAB 5, compressed or not, with the struct GTcls
    Returns:
        ndarray: (H, W), uint8, the field Segmentation
    Raises:
        ValueError: if the file is cut off, damaged or of another form, in any way
    """
    if content[_HEADER - 4 : _HEADER] != _VERSION_5_LITTLE_ENDIAN:
        raise ValueError("it is no file of MATLAB 5 with the lowest byte first")
    for kind, data in _elements(memoryview(content)[_HEADER:]):
        if kind == _COMPRESSED:
            kind, data = _next(_elements(_unpack(data)), _MATRIX, "variable")
        if kind != _MATRIX:
            raise ValueError(f"an element of the kind {kind} is no variable")
        array_class, _, name, fields = _array(data)
        if name == "GTcls":
            return _segmentation(array_class, fields)
    raise ValueError("there is no GTcls")


def _segmentation(array_class: int, fields: Iterator) -> np.ndarray:
    if array_class != _STRUCT:
        raise ValueError("GTcls is no struct")
    _, length = _next(fields, _INT32, "length of the names of fields")
    if len(length) != 4 or not 0 < (width := int.from_bytes(length, "little")) <= _LONGEST_NAME:
        raise ValueError("the names of fields have no length")
    _, names = _next(fields, _INT8, "names of fields")
    for start in range(0, len(names), width):
        _, data = _next(fields, _MATRIX, "field")
        if bytes(names[start : start + width]).rstrip(b"\0") == b"Segmentation":
            return _labels(data)
    raise ValueError("there is no GTcls.Segmentation")


def _labels(data: memoryview) -> np.ndarray:
    array_class, shape, _, content = _array(data)
    kind = _NUMBERS.get(array_class, "no number")
    if kind != "uint8" or len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"GTcls.Segmentation is {kind} {shape}")
    _, pixels = _next(content, _UINT8, "pixels")
    if len(pixels) != shape[0] * shape[1]:
        raise ValueError(f"{len(pixels)} labels are there for {shape[1]} x {shape[0]} pixels")
    return np.frombuffer(pixels, np.uint8).reshape(shape, order="F").copy(order="C")


def _array(data: memoryview) -> tuple[int, tuple[int, ...], str, Iterator]:
    """Class, shape and name of an array, and the elements that follow them."""
    parts = _elements(data)
    _, flags = _next(parts, _UINT32, "class of an array")
    _, shape = _next(parts, _INT32, "shape of an array")
    _, name = _next(parts, _INT8, "name of an array")
    if len(flags) != 8 or len(shape) % 4:
        raise ValueError("an array has no class or no shape")
    shape = struct.unpack(f"<{len(shape) // 4}i", shape)
    return flags[0], shape, bytes(name).decode("latin-1"), parts


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of each element. Those of up to 4 bytes may lie in the 8 of their header."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise ValueError("it ends within an element")
        kind, size = struct.unpack_from("<II", data, place)
        is_small = kind >> 16
        if is_small:
            kind, size = kind & 0xFFFF, kind >> 16
        start = place + (4 if is_small else 8)
        end = start + size
        if end > (place + 8 if is_small else len(data)):
            raise ValueError("an element is longer than what holds it")
        yield kind, data[start:end]
        place = end if kind == _COMPRESSED else end + (place - end) % 8


def _next(elements: Iterator, kind: int, what: str) -> tuple[int, memoryview]:
    found = next(elements, None)
    if found is None or found[0] != kind:
        raise ValueError(f"the {what} is missing")
    return found


def _unpack(data: memoryview) -> memoryview:
    unpacking = zlib.decompressobj()
    try:
        unpacked = unpacking.decompress(data, _LARGEST)
    except zlib.error as e:
        raise ValueError(f"it cannot be unpacked: {e}") from e
    if not unpacking.eof:
        raise ValueError("what is packed is cut off, or unpacks to more than 64 MiB")
    return memoryview(unpacked)
