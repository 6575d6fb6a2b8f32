"""Processes that load data and are killed."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dcn_projects.engine.stop_signals import StopSignals
from dcn_projects.engine.watched_loader import WatchedLoader


class Images(Dataset):
    """Of which one ends the process that loads it, once."""

    def __init__(self, folder, bad=9, number=signal.SIGKILL, error=None):
        self.once, self.bad, self.number, self.error = folder / "once", bad, number, error

    def __len__(self):
        return 12

    def __getitem__(self, i):
        if i == self.bad and not self.once.exists():
            self.once.touch()
            if self.error:
                raise self.error
            os.kill(os.getpid(), self.number)
        return torch.full((1000,), i)


class Loader:
    """That can begin at any batch, as ExactTrainLoader."""

    first_iteration = 0

    def __init__(self, images, workers=2):
        self.images, self.workers = images, workers

    def __iter__(self):
        rest = torch.utils.data.Subset(self.images, range(self.first_iteration, 12))
        yield from DataLoader(rest, num_workers=self.workers, batch_size=None)


CASES = {
    signal.SIGKILL: "was killed by SIGKILL, as the system does when memory runs out. Lower DATAL",
    signal.SIGBUS: "was killed by SIGBUS, as when shared memory runs out. Enlarge /dev/shm",
    signal.SIGSEGV: "was killed by SIGSEGV, from outside, or by an error in compiled code",
}


@pytest.fixture(params=["first", "after another"])
def handler(request, monkeypatch):
    """That of PyTorch may be there from the processes of an evaluation."""
    module = "torch.utils.data._utils.signal_handling"
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(f"{module}._SIGCHLD_handler_set", False)
    if request.param == "after another":
        list(DataLoader(range(2), num_workers=1))
        assert signal.getsignal(signal.SIGCHLD).__module__ == module
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("number", CASES)
def test_what_killed_it(number, handler, tmp_path):
    batches = iter(WatchedLoader(Loader(Images(tmp_path, number=number)), StopSignals(True)))
    seen = []
    with pytest.raises(OSError, match=f"a process that loads data {CASES[number]}"):
        seen += [int(batch[0]) for batch in batches]
    assert seen == sorted(seen)


def test_before_the_first_batch(tmp_path):
    with pytest.raises(OSError, match="a process that loads data was killed"):
        list(WatchedLoader(Loader(Images(tmp_path, bad=0)), StopSignals(True)))


@pytest.mark.parametrize("error", [OSError("a.jpg is damaged"), ConnectionResetError("store")])
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_data_stay_what_they_are(error, workers, tmp_path):
    loader = WatchedLoader(Loader(Images(tmp_path, error=error), workers), StopSignals(True))
    with pytest.raises(type(error), match=str(error)):
        list(loader)


def test_a_training_that_is_to_end_gets_its_batch(tmp_path):
    """From new processes, and exactly the one that comes next."""
    signals = StopSignals(True)
    signals.received = signal.SIGTERM
    loader = WatchedLoader(Loader(Images(tmp_path, number=signal.SIGTERM)), signals)
    assert [int(batch[0]) for batch in loader] == list(range(12))
    loader.first_iteration = 7
    assert [int(batch[0]) for batch in loader] == list(range(7, 12))
