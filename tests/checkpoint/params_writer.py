"""Writes `.params` files as MXNet does, in every version of its format."""

import struct

import numpy as np

VERSIONS = {"legacy": None, "V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA}
DTYPES = "<f4 <f8 <f2 u1 <i4 i1 <i8 ? <i2 <u2 <u4 <u8".split()  # in the order of their codes


def array_bytes(array: np.ndarray, version: str = "V2") -> bytes:
    magic = VERSIONS[version]
    head = b"" if magic is None else struct.pack("<I", magic)
    if version in ("V2", "V3"):
        head += struct.pack("<i", 0)  # dense
    sizes = "I" if magic is None else "q"
    head += struct.pack(f"<I{array.ndim}{sizes}", array.ndim, *array.shape)
    code = [np.dtype(d) for d in DTYPES].index(array.dtype)
    return head + struct.pack("<iii", 1, 0, code) + array.tobytes()


def list_bytes(records: list[bytes], names: list[str | bytes]) -> bytes:
    return b"".join([start_bytes(len(records)), *records, names_bytes(names)])


def start_bytes(num_arrays: int) -> bytes:
    return struct.pack("<QQQ", 0x112, 0, num_arrays)


def names_bytes(names) -> bytes:
    content = struct.pack("<Q", len(names))
    for name in names:
        name = name if isinstance(name, bytes) else name.encode()
        content += struct.pack("<Q", len(name)) + name
    return content


def write_params(path, arrays: dict[str, np.ndarray], version: str = "V2") -> None:
    """
    Args:
        arrays: "arg:NAME" or "aux:NAME" -> array
        version: key of VERSIONS
    """
    with open(path, "wb") as file:
        file.write(start_bytes(len(arrays)))
        for array in arrays.values():
            file.write(array_bytes(array, version))
        file.write(names_bytes(list(arrays)))
