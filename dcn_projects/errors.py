"""How an error becomes one line."""

import contextlib
import errno
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

__all__ = [
    "error_line",
    "exit_interrupted",
    "exit_with_one_line",
    "interrupt",
    "one_line",
    "one_line_errors",
    "was_interrupted",
]

_INTERRUPTED = 130  # of shells: 128 and the number of the signal
_interrupts = []  # that this process has got
# What stands in the way of writing a file, and is no mistake in its name.
_ADVICE = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Delete files, or ask for a larger quota",
    errno.EFBIG: "The file system, or ulimit -f, allows no larger file",
    errno.EIO: "The disk, or the connection to it, fails",
}


def one_line(error: BaseException) -> str:
    """
    The message of an error without line breaks. Of a KeyError, which quotes its message, the
    message itself, or "there is no KEY" where it has none. Of an error without a message, as of a
    bare assertion, the line of code that raised it.
    """
    if not str(error) and error.__traceback__:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {at.line} ({Path(at.filename).name}, line {at.lineno})"
    is_key = isinstance(error, KeyError) and len(error.args) == 1
    words = str(error.args[0] if is_key else error).split()
    return f"there is no {words[0]}" if is_key and len(words) == 1 else " ".join(words)


def error_line(error: BaseException, where: str = "") -> str:
    """
    What a program ends with. A line break, as a name of a file may have one, becomes a space.

    Args:
        where: what cannot be written if the error does not say it
    """
    if isinstance(error, OSError) and error.errno in _ADVICE:
        file = error.filename or where
        text = f"{file and f'{file}: '}{error.strerror}. {_ADVICE[error.errno]}"
    else:
        text = str(error)
    return "error: " + " ".join(map(str.strip, text.splitlines()))


@contextlib.contextmanager
def one_line_errors(config_file: str):
    """
    Within this context all that detectron2 raises about a config is a ValueError of one line, which
    names the file, unless it begins with another one, such as that of the weights. An OSError stays
    what it is.
    """
    try:
        yield
    except (AssertionError, KeyError, ValueError, yaml.YAMLError) as e:
        message = one_line(e)
        blamed = message.partition(": ")[0]
        is_known = os.path.isfile(blamed) or "://" in blamed
        raise ValueError(message if is_known else f"{config_file}: {message}") from e


@contextlib.contextmanager
def exit_with_one_line(where: str = "") -> Iterator[None]:
    """
    Within this context an error that the user of a program can mend ends it with one line,
    and with exit code 1.

    Args:
        where: see `error_line`
    """
    try:
        yield
    except (OSError, ValueError) as e:
        sys.exit(error_line(e, where))


def interrupt(number: int, frame) -> NoReturn:
    """A handler of SIGINT that raises KeyboardInterrupt, as Python's, and remembers it."""
    _interrupts.append(number)
    raise KeyboardInterrupt


def was_interrupted(error: BaseException) -> bool:
    """Whether an error is Ctrl-C or came of it: some libraries make an error of their own of it."""
    return isinstance(error, KeyboardInterrupt) or bool(_interrupts)


def exit_interrupted(how_to_go_on: str = "") -> NoReturn:
    """
    End a program after Ctrl-C with one line. Of several processes, which all get the signal, only
    that one speaks which started the others, or the first of torchrun's.
    """
    is_first = multiprocessing.parent_process() is None and os.getenv("LOCAL_RANK", "0") == "0"
    if is_first:
        print(f"interrupted. {how_to_go_on}".rstrip(" ."), file=sys.stderr)
    sys.exit(_INTERRUPTED)
