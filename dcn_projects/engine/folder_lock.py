"""One training at a time in a folder."""

import contextlib
import errno
import fcntl
import logging
import multiprocessing
import os
import socket
from pathlib import Path

__all__ = ["lock_folder"]

_NAME = ".lock"
# Process and folder -> descriptor of the locked file. A process that is forked off has no locks.
_HELD: dict[tuple[int, Path], int] = {}


def lock_folder(folder: Path) -> None:
    """
    Keep a folder for the trainings of this process, until it ends, however it ends. Of several
    processes that train together the first one has the lock, or the one that starts them.

    Args:
        folder: is made if there is none
    Raises:
        OSError: if another process has it, with its number and host
    """
    folder = folder.resolve()
    is_first = multiprocessing.parent_process() is None and os.getenv("RANK", "0") == "0"
    if not is_first or _is_held(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        # Not flock, whose locks live on in the processes that load data. A lock of this kind ends
        # when its process closes any descriptor of the file: it is opened nowhere else.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        if e.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(
                f"OUTPUT_DIR {folder} is in use by another training, {holder}: end it first, or "
                "name another OUTPUT_DIR"
            ) from None
        logging.getLogger(__name__).warning(
            f"OUTPUT_DIR {folder} cannot be locked ({e.strerror}). Take care that no other "
            "training writes to it"
        )
        return
    with contextlib.suppress(OSError):  # a full disk, of which the training will tell
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _HELD[os.getpid(), folder] = descriptor


def _is_held(folder: Path) -> bool:
    """Whether this process has the lock of a folder, which was not moved away or removed since."""
    descriptor = _HELD.get((os.getpid(), folder))
    try:
        return descriptor is not None and os.path.samestat(
            os.fstat(descriptor), os.stat(folder / _NAME)
        )
    except FileNotFoundError:
        return False
