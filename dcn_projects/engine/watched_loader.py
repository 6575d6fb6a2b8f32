"""Processes that load data and are killed."""

import re
import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from multiprocessing import active_children, connection
from multiprocessing.process import BaseProcess

from .stop_signals import StopSignals

__all__ = ["WatchedLoader", "is_of_killed_loader", "why_killed"]

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
        iteration, restarted = self.first_iteration, None
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
                if not is_of_killed_loader(e, bool(workers)):
                    raise
                if not self.signals.received or restarted == iteration:
                    raise OSError(why_killed(workers)) from e
                restarted = iteration


def _wait_for_batches(handler) -> None:
    """
    PyTorch raises an error wherever the program is when a worker dies. Without its handler it does
    so where the batch of the worker is waited for, where nothing is half done.

    Args:
        handler: of SIGCHLD before the workers were started, perhaps that of earlier ones
    """
    if threading.current_thread() is threading.main_thread():
        is_of_torch = getattr(handler, "__module__", "").startswith("torch.")
        usual = signal.SIG_DFL if is_of_torch or handler is None else handler
        signal.signal(signal.SIGCHLD, usual)


def is_of_killed_loader(error: Exception, has_workers: bool = True) -> bool:
    """
    Whether an error came of the death of a process that loads data.

    Args:
        has_workers: there are such processes
    """
    if str(error).startswith("Caught "):  # raised by what a worker runs
        return False
    if isinstance(error, RuntimeError):
        return bool(_KILLED.match(str(error)))
    # What a worker sends is fetched from it.
    is_lost = isinstance(error, FileNotFoundError) and error.filename is None
    return has_workers and (is_lost or isinstance(error, (ConnectionError, EOFError)))


def why_killed(workers: Collection[BaseProcess] = ()) -> str:
    """What killed one of these processes, as far as can be found out, and what to do."""
    dying = connection.wait([worker.sentinel for worker in workers], timeout=_DYING)
    for worker in workers:
        worker.join(_DYING if worker.sentinel in dying else 0)
    codes = {worker.exitcode for worker in workers}
    number = next((-code for code in codes if code and code < 0), None)
    if number is None:  # one of those that died before the first batch
        return f"a process that loads data was killed, {_CAUSES[signal.SIGKILL]}"
    name = signal.Signals(number).name
    cause = _CAUSES.get(number, "from outside, or by an error in compiled code")
    return f"a process that loads data was killed by {name}, {cause}"
