"""
Files of torch.save: a pickle, and the numbers of the tensors beside it. They are read without
torch.load, which before version 2.6 of PyTorch can run what is in a file, also with weights_only.
"""

import functools
import io
import os
import sys
import zipfile
from collections.abc import Callable

from .archives import open_archive, read_entry
from .damage import errors_that_name
from .pickled_arrays import SET_STATE, Storage, find_plain, new_storage
from .plain_pickle import read_plain_pickle

__all__ = ["SizedFile", "read_bare_torch_file", "read_zipped_torch_file"]

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files of torch < 1.6
_MAX_SMALL_PICKLE = 2**20  # bytes that one may have in any archive, if it is compressed
_OTHER_MACHINE = "another byte order: save it on a machine of this kind"


class SizedFile:
    """A file that reads as many bytes as it is asked for, and fails where fewer are left."""

    def __init__(self, file: io.BufferedReader):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.left, self.reserved = self.size, 0

    def read(self, count: int) -> bytes:
        self._take(count)
        return self.file.read(count)

    def readinto(self, content: memoryview) -> None:
        self._take(len(content))
        self.file.readinto(content)

    def readline(self) -> bytes:
        line = self.file.readline()
        self._take(len(line))
        return line

    def _take(self, count: int) -> None:
        if not 0 <= count <= self.left:
            raise ValueError(f"{self.left} bytes are left, expected {count}")
        self.left -= count

    def reserve(self, count: int) -> None:
        """For numbers that follow later."""
        self.reserved += count
        if self.reserved > self.left:
            raise ValueError(f"{self.left} bytes are left, expected {self.reserved}")


def read_zipped_torch_file(path: str | os.PathLike):
    """
    Read what torch.save wrote to a zip archive, on the CPU. All checksums are compared.

    Raises:
        OSError, ValueError: see `open_archive`; also if it holds other objects than tensors,
            numbers, texts and containers
    """
    with open_archive(path) as archive:
        names = set(archive.namelist())
        roots = [n.partition("/")[0] for n in names if n.partition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise ValueError(f"{os.fspath(path)} is not a checkpoint: it has no data.pkl")
        (root,) = roots
        order = f"{root}/byteorder"
        if order in names and bytes(read_entry(archive, order)) != sys.byteorder.encode():
            raise ValueError(_OTHER_MACHINE)
        storages = {}
        find_stored = functools.partial(_from_archive, archive, f"{root}/data", storages)
        size = os.path.getsize(path)
        if archive.getinfo(f"{root}/data.pkl").file_size > max(size, _MAX_SMALL_PICKLE):
            raise ValueError("a pickle that is larger than the file")
        pickled = bytes(read_entry(archive, f"{root}/data.pkl"))
        content = read_plain_pickle(io.BytesIO(pickled), size, find_plain, SET_STATE, find_stored)
        for name in names - storages.keys() - {order, f"{root}/data.pkl"}:
            read_entry(archive, name)
        return content


def _from_archive(archive: zipfile.ZipFile, folder: str, storages: dict, *key) -> Storage:
    _, kind, name, _, count = key
    name = f"{folder}/{name}"
    if name not in storages:
        most = archive.getinfo(name).file_size
        storages[name] = new_storage(kind, count, most)
        read_entry(archive, name, storages[name].memory())
    storages[name].check(kind, count)
    return storages[name]


def read_bare_torch_file(path: str | os.PathLike):
    """
    Read what torch.save wrote before version 1.6: pickles one after the other, then the numbers.
    They have no checksums.

    Raises:
        OSError: if it cannot be read
        ValueError: see `read_zipped_torch_file`
    """
    with errors_that_name(path), open(path, "rb") as opened:
        file, storages = SizedFile(opened), {}

        def read(find_stored: Callable | None = None):
            return read_plain_pickle(file, file.size, find_plain, SET_STATE, find_stored)

        if read() != _MAGIC or read() != _VERSION:
            raise ValueError("no file of torch.save")
        if read()["little_endian"] != (sys.byteorder == "little"):
            raise ValueError(_OTHER_MACHINE)
        content = read(functools.partial(_from_later, file, storages))
        for key in read():
            storage = storages.pop(key)
            count, numbers = int.from_bytes(file.read(8), "little"), storage.memory()
            if count * storage.itemsize != len(numbers):
                raise ValueError(f"{count} numbers, expected {len(numbers) // storage.itemsize}")
            file.readinto(numbers)
        if storages or file.left:
            raise ValueError(f"numbers of {len(storages)} tensors missing, {file.left} bytes left")
        return content


def _from_later(file: SizedFile, storages: dict, *key) -> Storage:
    """The numbers follow behind the pickles."""
    _, kind, name, _, count, part = key
    if name not in storages:
        storages[name] = new_storage(kind, count, file.left)
        file.reserve(len(storages[name].memory()))
    storages[name].check(kind, count)
    return storages[name] if part is None else storages[name].part(*part[1:])
