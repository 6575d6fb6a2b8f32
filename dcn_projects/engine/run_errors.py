"""What a training or an evaluation ends with in one line, after it has begun."""

import atexit
import contextlib
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from dcn_projects.errors import error_line, one_line

from .output_checkpoints import how_to_go_on
from .watched_loader import is_of_killed_loader, why_killed

__all__ = ["one_line_errors_of_a_run", "quiet_log_files"]

_LOGGERS = ("fvcore", "detectron2", "dcn_projects")  # which write to log.txt
_OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)


@contextlib.contextmanager
def one_line_errors_of_a_run(output_dir: str | None) -> Iterator[None]:
    """
    Within this context, where a ValueError would be a mistake of the program, other errors end it
    with one line and the exit code 1.

    Args:
        output_dir: of a training, for the line to say how it goes on; None for an evaluation
    """
    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(_is_not_told)
    try:
        yield
    except FloatingPointError as e:
        sys.exit(
            f"error: {one_line(e)} Lower SOLVER.BASE_LR, or look into MODEL.WEIGHTS and the data."
        )
    except _OUT_OF_MEMORY as e:
        less = "Use smaller images (INPUT) or fewer at a time (SOLVER.IMS_PER_BATCH)."
        sys.exit(f"error: memory is out: {one_line(e)} {less}{_then(output_dir)}")
    except (EOFError, OSError, RuntimeError) as e:
        if is_of_killed_loader(e):  # that of an evaluation; a training has said more
            e = OSError(why_killed())
        if not isinstance(e, OSError):
            raise
        where = f"OUTPUT_DIR {output_dir}" if output_dir else ""
        sys.exit(f"{error_line(_inner(e), where).rstrip('.')}.{_then(output_dir)}")
    finally:
        logger.removeFilter(_is_not_told)


def _is_not_told(record: logging.LogRecord) -> bool:
    """Whether a record is none about an error that ends the program with a line of its own."""
    told = (FloatingPointError, OSError, *_OUT_OF_MEMORY)
    return not (record.exc_info and isinstance(record.exc_info[1], told))


def _inner(error: OSError) -> OSError:
    """
    The error itself, or that of a process that loads data, of which there is a traceback with the
    message as its last line.
    """
    lines = str(error).strip().splitlines()
    return error if len(lines) < 2 else OSError(lines[-1].removeprefix("OSError: "))


def _then(output_dir: str | None) -> str:
    return "" if output_dir is None else f" {how_to_go_on(Path(output_dir), resumed=True)}"


@contextlib.contextmanager
def quiet_log_files() -> Iterator[None]:
    """
    Within this context log files are opened. One that cannot be written, as on a full disk, is told
    in one line from then on, and not in a traceback for every line of the log.
    """
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before
        for handler in itertools.chain(*(logging.getLogger(name).handlers for name in _LOGGERS)):
            stream = getattr(handler, "stream", None)
            name = getattr(stream, "name", "<none>")  # of the screen it is <stdout> or <stderr>
            if isinstance(name, str) and not name.startswith("<"):
                handler.handleError = _TellOnce(name)
                atexit.unregister(stream.close)  # of detectron2
                atexit.register(_close, stream)


class _TellOnce:
    told = False  # of all files, as they are on one disk

    def __init__(self, name: str):
        self.name = name

    def __call__(self, record: logging.LogRecord) -> None:
        if not _TellOnce.told:
            _TellOnce.told = True
            print(f"{self.name} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def _close(stream: IO) -> None:
    with contextlib.suppress(OSError):  # what could not be written cannot be written now
        stream.close()
