"""Zip archives, in which PyTorch and NumPy keep arrays: what is damaged, and what is too large."""

import contextlib
import os
import zipfile
from collections.abc import Iterator

from .damage import errors_that_name

__all__ = ["is_archive", "open_archive", "read_entry"]

# Weights hardly become smaller when they are compressed. Zeros become 1000 times smaller.
_MAX_RATIO = 10
_MIN_SIZE = 64 * 2**20  # bytes that any archive may have
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1  # of flag_bits
_PART = 2**20


def is_archive(path: str | os.PathLike) -> bool:
    """Whether a file begins as a zip archive does, complete or not."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


@contextlib.contextmanager
def open_archive(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """
    Open an archive, and raise errors that name it: see `errors_that_name`. Before anything in it is
    decompressed, its entries are known to be readable, and to take at most 64 MiB, or 10 times the
    size of the file.

    Raises:
        OSError: if it cannot be read
        ValueError: if it is cut off, damaged or encrypted, compressed in another way than by
            deflate, or larger
    """
    most = max(_MIN_SIZE, _MAX_RATIO * os.path.getsize(path))
    with errors_that_name(path), zipfile.ZipFile(path) as archive:
        _check_entries(archive, os.fspath(path), most)
        yield archive


def _check_entries(archive: zipfile.ZipFile, path: str, most: int) -> None:
    entries = archive.infolist()
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise ValueError(f"{path} is encrypted: unpack it, and pack it without a password")
        if entry.compress_type not in _METHODS:
            raise ValueError(
                f"{path} is compressed by method {entry.compress_type} of zip: pack it with deflate"
            )
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two entries of the same name")
    total = sum(entry.file_size for entry in entries)
    if total > most:
        raise ValueError(
            f"{path} would take {total / 2**20:,.0f} MiB when it is unpacked, and "
            f"{most / 2**20:,.0f} MiB are the most for an archive of its size. Weights do not "
            "become so small: it is no file of weights"
        )


def read_entry(archive: zipfile.ZipFile, name: str, content: memoryview | None = None):
    """
    Args:
        content: where to put what the entry holds, of exactly its size
    Returns:
        what an entry holds: `content`, or a new bytearray
    Raises:
        KeyError: if there is no such entry
        zipfile.BadZipFile, zlib.error, ValueError: if its checksum or its size is another
    """
    entry = archive.getinfo(name)
    if content is None:
        content = memoryview(bytearray(entry.file_size))
    if len(content) != entry.file_size:
        raise ValueError(f"{name} has {entry.file_size} bytes, expected {len(content)}")
    done = 0
    with archive.open(entry) as file:
        while count := file.readinto(content[done : done + _PART]):
            done += count
        if done < len(content) or file.read(1):
            raise ValueError(f"{name} is cut off")
    return content
