"""How an error becomes one line."""

import contextlib
import os
import traceback
from pathlib import Path

import yaml

__all__ = ["one_line", "one_line_errors"]


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
