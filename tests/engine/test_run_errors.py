"""What a training ends with in one line, after it has begun."""

import errno
import io
import logging
import os

import pytest
import torch

from dcn_projects.engine.run_errors import (
    _TellOnce,
    one_line_errors_of_a_run,
    quiet_log_files,
)


def line_of(error, output_dir):
    with pytest.raises(SystemExit) as end, one_line_errors_of_a_run(output_dir):
        try:
            raise error
        except Exception:
            logging.getLogger("detectron2.engine.train_loop").exception("Exception during training")
            raise
    return end.value.code


KILLED = "error: a process that loads data was killed, as the system does when memory runs out."
THEN = "No checkpoint of this training is there yet: begin it anew"
WORKER = (
    'Caught OSError in DataLoader worker process 0.\nTraceback\n  File "a"\nOSError: a.jpg is cut'
)
CASES = [
    (
        OSError(errno.ENOSPC, "No space left", "a.pth"),
        f"error: a.pth: No space left. Make room. {THEN}",
    ),
    (
        OSError(errno.EDQUOT, "Quota"),
        "error: OUTPUT_DIR {}: Quota. Delete files, or ask for a larger",
    ),
    (OSError(errno.EIO, "I/O", "a"), "error: a: I/O. The disk, or the connection to it, fails. "),
    (OSError(errno.EFBIG, "Big", "a"), "error: a: Big. The file system, or ulimit -f, allows no "),
    (OSError(WORKER), f"error: a.jpg is cut. {THEN}"),
    (
        MemoryError("Unable to allocate 9 GiB"),
        "error: memory is out: Unable to allocate 9 GiB Use ",
    ),
    (
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        "error: memory is out: CUDA out of memory.",
    ),
    (FloatingPointError("NaN!\nloss"), "error: NaN! loss Lower SOLVER.BASE_LR, or look into"),
]


@pytest.mark.parametrize("error, line", CASES, ids=lambda x: type(x).__name__)
def test_one_line(error, line, tmp_path, caplog):
    """And no traceback in the log."""
    assert line_of(error, str(tmp_path)).startswith(line.format(tmp_path))
    assert "Exception during training" not in caplog.text


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError("a.jpg is damaged"), "error: a.jpg is damaged."),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), KILLED),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), KILLED),
        (EOFError(), KILLED),
    ],
    ids=lambda x: type(x).__name__,
)
def test_of_an_evaluation(error, line):
    assert line_of(error, None).startswith(line)


def test_other_errors_stay_what_they_are(caplog):
    with pytest.raises(RuntimeError):
        line_of(RuntimeError("a mistake of the program"), None)
    assert "Exception during training" in caplog.text


def test_a_log_that_cannot_be_written(monkeypatch, capsys):
    """One line, however many are logged."""

    class Full(io.StringIO):
        name = "output/log.txt"

        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = logging.getLogger("dcn_projects")
    monkeypatch.setattr(_TellOnce, "told", False)
    with quiet_log_files():
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(Full())])
        logger.warning("x")
    assert capsys.readouterr().err == ""
    for _ in range(3):
        logger.warning("x")
    line = "output/log.txt cannot be written: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == line
