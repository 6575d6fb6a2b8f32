"""
Files that appear as a whole. What is written in place is half there after a kill, a full disk or a
power cut, and what it replaced is gone.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["PART", "sync_folder", "whole_file"]

PART = ".part"  # ends the name of a file that is not complete
_NO_SYNC_OF_FOLDERS = (errno.EBADF, errno.EINVAL, errno.ENOTSUP)  # on some file systems


class _File(io.BufferedWriter):
    """Remembers why it could not be written, of which torch.save only says 'unexpected pos'."""

    error: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as e:
            self.error = e
            raise


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """
    Open a file to be written. It has another name until the context ends, and is on the disk then:
    the file of this name is the old one or the new one, at any time and after any failure.

    Args:
        mode: "wb", or "w" for text in UTF-8
    Raises:
        OSError: with the path, if it cannot be written. The old file is as it was
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    raw = None
    try:
        raw = _File(open(part, "wb", buffering=0))
        file = raw if mode == "wb" else io.TextIOWrapper(raw, encoding="utf-8")
        yield file
        file.flush()
        os.fsync(raw.fileno())
        file.close()
        os.replace(part, path)
        sync_folder(path.parent)
    except BaseException as e:
        with contextlib.suppress(OSError, ValueError):  # it tries once more to write what is left
            raw and raw.close()
        part.unlink(missing_ok=True)
        error = raw and raw.error or e
        if isinstance(error, OSError) and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)
