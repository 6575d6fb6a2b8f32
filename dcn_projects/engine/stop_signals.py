"""
What ends a training early: Ctrl-C, and the signals with which systems of jobs make room for others.
The iteration is finished and saved first. A second signal does not wait for that.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from torch.multiprocessing import ProcessExitedException

__all__ = ["STOP_SIGNALS", "StopSignals", "Stopped", "passed_on"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A process beside others gets a signal from the terminal and once more from what started it.
_SAME_SIGNAL = 1.0  # seconds


class Stopped(SystemExit):
    """Ends the program with the exit code that shells give: 128 and the number of the signal."""

    def __init__(self, number: int, by_all: bool = False):
        """
        Args:
            by_all: it is raised on all processes of a training
        """
        super().__init__(128 + number)
        self.name, self.by_all = signal.Signals(number).name, by_all


class StopSignals:
    """
    Within this context a signal is kept in `received`, for the program to stop where it can.

    Attributes:
        received: number of the signal; 0 if there was none
        raises: nothing has to be finished, and a signal shall raise Stopped
    """

    def __init__(self, alone: bool):
        """
        Args:
            alone: no other process works on the same training
        """
        self.alone = alone
        self.received = 0
        self.raises = False

    def __enter__(self):
        self._process = os.getpid()
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if _is_heeded(number):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if os.getpid() != self._process:
            return  # a process that loads data: the one that trains says when it ends
        name = signal.Signals(number).name
        if not self.received:
            self.received, self._time = number, time.monotonic()
            if self.raises:
                raise Stopped(number)
            if self.alone:
                _say(f"{name}: the iteration is finished and saved. Another signal ends at once.")
        elif self.alone or time.monotonic() - self._time > _SAME_SIGNAL:
            _say(f"{name}: ended at once. Go on with --resume from the last checkpoint")
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._process, number)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # print may be what the signal interrupted


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """
    Within this context a signal is passed on to the processes that this one has started, and this
    one ends as they do.
    """

    received = []

    def pass_on(number: int, frame) -> None:
        received.append(number)
        for process in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    before = {n: signal.signal(n, pass_on) for n in STOP_SIGNALS if _is_heeded(n)}
    try:
        yield
    except ProcessExitedException as e:
        number = abs(e.exit_code) - (128 if e.exit_code > 0 else 0)
        if number not in STOP_SIGNALS or not received and e.exit_code < 0:
            sys.exit(_ended(e.exit_code))
        received[:] = [number]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(received[0])


def _ended(code: int) -> int | str:
    """What to end with after a process has: it has said why itself, unless it was killed."""
    if code > 0:
        return code
    return f"error: a process of the training was killed by {signal.Signals(-code).name}"


def _is_heeded(number: int) -> bool:
    """Whether this process was not started without it, as by nohup."""
    return signal.getsignal(number) is not signal.SIG_IGN
