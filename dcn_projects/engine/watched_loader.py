"""Processes that load data and are killed."""

import re
import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from multiprocessing import active_children, connection
from multiprocessing.process import BaseProcess

from .stop_signals import StopSignals

__all__ = ["WatchedLoader"]

_KILLED = re.compile(r"DataLoader worker \(pid.*\) (?:exited unexpectedly|is killed by signal)")
_DYING = 5.0  # seconds from when its connections are gone until it is
_CAUSES = {
    signal.SIGKILL: "as the system does when memory runs out. Lower DATALOADER.NUM_WORKERS",
    signal.SIGBUS: "as when shared memory runs out. Enlarge /dev/shm (docker run --shm-size), or "
    "set DATALOADER.NUM_WORKERS 0",
}


class WatchedLoader:
    """
    A loader that says in one line that a process that loads data was killed. If all processes of a
    job get the signal to end, those that load data die of it at once, and the one that trains does
    not: it gets the batches of its last iteration from new ones.
    """

    def __init__(self, loader: Iterable, signals: StopSignals):
        """
        Args:
            loader: of training batches. If it has a `first_iteration`, as ExactTrainLoader, it can
                begin with the batch of any iteration
            signals: of the training
        """
        self.loader, self.signals = loader, signals
        self.first_iteration = 0

    def __iter__(self) -> Iterator:
        iteration = self.first_iteration
        while True:
            if hasattr(self.loader, "first_iteration"):
                self.loader.first_iteration = iteration
            others, workers = set(active_children()), None  # those that load data
            handler = signal.getsignal(signal.SIGCHLD)
            try:
                for batch in self.loader:
                    if workers is None:
                        workers = set(active_children()) - others
                        _wait_for_batches(handler)
                    iteration += 1
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as e:
                if workers is None:
                    workers = set(active_children()) - others
                if not _is_of_killed(e, workers):
                    raise
                if not self.signals.received:
                    raise OSError(_why(workers)) from e


def _wait_for_batches(handler) -> None:
    """
    PyTorch raises an error wherever the program is when a worker dies. Without its handler it does
    so where the batch of the worker is waited for, where nothing is half done.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _is_of_killed(error: Exception, workers: Collection[BaseProcess]) -> bool:
    if str(error).startswith("Caught "):  # raised by what a worker runs
        return False
    if isinstance(error, RuntimeError):
        return bool(_KILLED.match(str(error)))
    # What a worker sends is fetched from it.
    is_lost = isinstance(error, FileNotFoundError) and error.filename is None
    return bool(workers) and (is_lost or isinstance(error, (ConnectionError, EOFError)))


def _why(workers: Collection[BaseProcess]) -> str:
    connection.wait([worker.sentinel for worker in workers], timeout=_DYING)
    codes = {worker.exitcode for worker in workers}
    number = next((-code for code in codes if code and code < 0), None)
    if number is None:  # one of those that died before the first batch
        return f"a process that loads data was killed, {_CAUSES[signal.SIGKILL]}"
    name = signal.Signals(number).name
    cause = _CAUSES.get(number, "from outside, or by an error in compiled code")
    return f"a process that loads data was killed by {name}, {cause}"
