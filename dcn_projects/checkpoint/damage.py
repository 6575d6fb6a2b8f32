"""What is said of a file that cannot be read."""

import contextlib
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
    except OSError:
        raise
    except PickledObjectError as e:
        raise ValueError(
            f"{path} holds objects of {e}. Only dense tensors, arrays of NumPy, numbers, texts and "
            "plain containers are read: save its parameters alone, with torch.save, as a "
            "dictionary of names"
        ) from None
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(path):
            raise
        reason = " ".join(str(e).split())[:100] or type(e).__name__
        raise ValueError(f"{path} is cut off or damaged ({reason}). {COPY_AGAIN}") from None
