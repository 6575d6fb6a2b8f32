import math
import re
import struct
from os import PathLike
from pathlib import Path

import numpy as np

__all__ = ["MAGIC", "read_params"]

MAGIC = 0x112  # a file starts with it, as 64 bits
# The first word of an array is its version. Before V1 there was no version, and it is the rank.
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_MAX_RANK = 32
_MAX_BYTES = 2**62  # sizes that NumPy can hold
_MAX_ARRAYS = 100_000  # an empty one takes 28 bytes of the file, and half a kilobyte here
_NAME = re.compile(r"[!-~]{1,255}")
_STORAGE = {1: "row-sparse", 2: "compressed sparse row"}
_DTYPES = {
    0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?",
    8: "<i2", 9: "<u2", 10: "<u4", 11: "<u8",
}  # fmt: skip


class _Reader:
    """Takes values off a file's bytes, and says where it is when they end or make no sense."""

    def __init__(self, path: str | PathLike):
        self.path = path
        self.data = Path(path).read_bytes()
        self.position = 0
        self.what = "the header"

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {self.what}, at byte {self.position}: {message}")

    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int) -> memoryview:
        if size > self.left():
            raise self.error(f"the file is cut off ({size} bytes expected, {self.left()} left)")
        self.position += size
        return memoryview(self.data)[self.position - size : self.position]

    def numbers(self, format: str) -> tuple:
        return struct.unpack("<" + format, self.take(struct.calcsize("<" + format)))

    def count(self, smallest: int) -> int:
        """A number of things of which each takes at least `smallest` bytes."""
        (count,) = self.numbers("Q")
        if count * smallest > self.left():
            raise self.error(f"{count} of them cannot be in the {self.left()} bytes that are left")
        return count

    def array(self) -> np.ndarray | None:
        """None is what MXNet saves for an array without a shape."""
        (version,) = self.numbers("I")
        if version in (_V2, _V3):
            (storage,) = self.numbers("i")
            if storage != 0:
                kind = _STORAGE.get(storage, f"of storage type {storage}")
                raise self.error(f"the array is {kind}, only dense ones are read")
        if version in (_V1, _V2, _V3):
            (rank,) = self.numbers("i")
        else:
            rank = version
        if rank == (-1 if version == _V3 else 0):
            return None
        if not 0 <= rank <= _MAX_RANK:
            raise self.error(f"the array has a rank of {rank:#x}: damaged, or not of MXNet")
        shape = self.numbers(f"{rank}{'q' if version in (_V1, _V2, _V3) else 'I'}")
        _, _, code = self.numbers("iii")  # the first two are the device
        if code not in _DTYPES:
            raise self.error(f"the array has the unknown dtype {code}")
        dtype = np.dtype(_DTYPES[code])
        if min(shape, default=0) < 0 or math.prod(n or 1 for n in shape) > _MAX_BYTES // 8:
            raise self.error(f"the array has an impossible shape, {shape}")
        data = self.take(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)


def read_params(path: str | PathLike) -> dict[str, np.ndarray]:
    """
    Read a `.params` file of MXNet, of any version of its NDArray format: dense arrays with names.
    No size in the file is believed before it is compared with the size of the file, little more
    memory is taken than that, and nothing in it is executed.

    Args:
        path: the file
    Returns:
        dict: name, such as "arg:conv1_weight", -> array, read-only, in the order of the file
    Raises:
        OSError: if the file cannot be read
        ValueError: if it is cut off, damaged or another kind of file, or has arrays that are
            sparse, nameless or of equal names. The message names file, array and byte.
    """
    file = _Reader(path)
    magic, _ = file.numbers("QQ")
    if magic != MAGIC:
        raise file.error(f"it starts with {magic:#x} instead of {MAGIC:#x}: not of MXNet")
    file.what = "the number of arrays"
    count = file.count(smallest=4)
    if count > _MAX_ARRAYS:
        raise file.error(f"{count} are more than a network has")
    # The names follow after all arrays. An error about a damaged array can give its number only.
    arrays = []
    for i in range(count):
        file.what = f"array {i + 1} of {count}"
        arrays.append(file.array())
    file.what = "the number of names"
    num_names = file.count(smallest=8)
    if num_names != count:
        raise file.error(f"there are {count} arrays and {num_names} names")
    named = {}
    for i, array in enumerate(arrays):
        file.what = f"the name of array {i + 1} of {count}"
        name = bytes(file.take(file.count(smallest=1))).decode(errors="replace")
        if not _NAME.fullmatch(name):
            raise file.error(f"{name[:40]!r} cannot be the name of an array")
        if name in named:
            raise file.error(f"{name} is there twice")
        if array is None:
            raise file.error(f"{name} has no shape and no values")
        named[name] = array
    file.what = "the end"
    if file.left():
        raise file.error(f"{file.left()} bytes follow the last name")
    return named
