"""
The measurements of a training that is resumed go on as if it had not been interrupted: each line of
metrics.json is there once, and medians are taken over iterations of before, too. (Those of scalars
that are not measured in every iteration begin anew.)
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from detectron2.utils.events import EventStorage

__all__ = ["measured_last", "resume_metrics"]

# Of detectron2: the iterations between two lines, and those over which a line takes medians.
PERIOD = WINDOW = 20


def measured_last(storage: EventStorage) -> dict[str, dict]:
    """What `resume_metrics` takes: of each scalar the last values and their iterations."""
    smooth = storage.smoothing_hints()
    return {
        name: {"values": [list(v) for v in history.values()[-WINDOW:]], "smooth": smooth[name]}
        for name, history in storage.histories().items()
    }


def resume_metrics(
    path: Path, storage: EventStorage, measured: Mapping[str, dict], done: int
) -> bool:
    """
    Args:
        path: of metrics.json
        storage: of a training that begins
        measured: what `measured_last` returned when its last checkpoint was made
        done: the iterations that it had done; 0 if it is a new one
    Returns:
        bool: whether a line has to be written at once, which would have been the next thing after
            the checkpoint
    """
    if done == 0:
        cut_metrics(path, math.inf)
        return False
    first = done // PERIOD * PERIOD  # what was measured from here on is not written yet
    line_is_missing = first == done and not _has_line(path, done - 1)
    if line_is_missing:
        first -= PERIOD
    evaluated = _measured_after(path, measured, first, done)
    cut_metrics(path, first)
    put_again(storage, measured | evaluated, done, first)
    return line_is_missing


def _measured_after(path: Path, measured: Mapping[str, dict], first: float, done: int) -> dict:
    """
    What lines that are to be cut have of iterations that were done, and that was measured after the
    checkpoint: the results of an evaluation, which is not made again.
    """
    found = {}
    for line in _lines(path):
        iteration = _iteration_of(line)
        if first <= iteration < done:
            for name, value in json.loads(line).items():
                scalar = measured.get(name, {"values": [(0, -1)], "smooth": False})
                is_new = name != "iteration" and scalar["values"][-1][1] < iteration
                if is_new and not scalar["smooth"]:
                    found[name] = {"values": [[value, iteration]], "smooth": False}
    return found


def put_again(storage: EventStorage, measured: Mapping[str, dict], done: int, first: int) -> None:
    """As `resume_metrics`; `first` of the iterations whose measurements are not written."""
    now = storage.iter
    for name, scalar in measured.items():
        last = max(iteration for _, iteration in scalar["values"])
        # Of what is written already, only what the next iteration measures again: it would be
        # written twice.
        if last >= first or scalar["smooth"] and last == done - 1:
            for value, iteration in scalar["values"]:
                storage.iter = iteration
                storage.put_scalar(name, value, smoothing_hint=scalar["smooth"])
    storage.iter = now


def cut_metrics(path: Path, first: float) -> None:
    """
    Leave the lines of metrics.json before an iteration. Those behind it are measured again, and
    half a line is of a training that was killed while it wrote.
    """
    lines = _lines(path)
    before = math.inf  # of earlier trainings in the folder the lines stay
    while lines and not ((i := _iteration_of(lines[-1])) < first or i > before + PERIOD):
        before = before if math.isnan(i) else i
        lines.pop()
    if path.exists():
        with path.open("r+b") as f:  # a writer has it open, to append
            f.truncate(sum(map(len, lines)))


def _has_line(path: Path, iteration: int) -> bool:
    """Whether all that was written after an iteration is there."""
    lines = _lines(path)
    numbers = [_iteration_of(line) for line in lines]
    return iteration in numbers and not math.isnan(numbers[-1])


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _iteration_of(line: bytes) -> float:
    """NaN if it is not a whole line."""
    try:
        return json.loads(line)["iteration"] if line.endswith(b"\n") else math.nan
    except (ValueError, KeyError, TypeError):
        return math.nan
