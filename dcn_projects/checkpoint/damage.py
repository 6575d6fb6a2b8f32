"""What is said of a file that cannot be read."""

import contextlib
import errno
import os
from collections.abc import Iterator

from .plain_pickle import PickledObjectError

__all__ = ["COPY_AGAIN", "errors_that_name"]

COPY_AGAIN = "Copy it again, or use an earlier one"


@contextlib.contextmanager
def errors_that_name(path: str | os.PathLike) -> Iterator[None]:
    """
    Within this context, in which a file of weights is read and nothing else is done, all that is
    raised is an OSError, or a ValueError of one line that begins with the path. Damaged files can
    raise anything.
    """
    path = os.fspath(path)
    try:
        yield
    except OSError as e:
        if e.errno in (None, errno.EINVAL):  # a damaged archive names a place before its begin
            raise _damaged(path, e) from None
        raise e if e.filename else OSError(e.errno, e.strerror, path) from None
    except PickledObjectError as e:
        raise ValueError(
            f"{path} holds objects of {_short(e)}. Only dense tensors, arrays of NumPy, numbers, "
            "texts and plain containers are read: save its parameters alone, with torch.save, as a "
            "dictionary of names"
        ) from None
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(path):
            raise
        raise _damaged(path, e) from None


def _damaged(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} is cut off or damaged ({_short(error)}). {COPY_AGAIN}")


def _short(error: Exception) -> str:
    """A message, which may have parts of the file, as a part of a line."""
    words = " ".join(str(error).split())[:100] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in words)
