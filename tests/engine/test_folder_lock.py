"""One training at a time in a folder."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from dcn_projects.engine.folder_lock import lock_folder

HOLD = """
import sys, time
from pathlib import Path
from dcn_projects.engine.folder_lock import lock_folder
lock_folder(Path(sys.argv[1]))
if len(sys.argv) > 2:  # as a loader has processes
    import os
    os.fork() or time.sleep(300)
print("locked", flush=True)
time.sleep(300)
"""


@pytest.fixture
def hold():
    """hold(folder) has another process lock it, and returns that process."""
    processes = []

    def start(folder, *more):
        command = [sys.executable, "-c", HOLD, str(folder), *more]
        output = dict(stdout=subprocess.PIPE, text=True, start_new_session=True)
        processes.append(subprocess.Popen(command, **output))
        assert processes[-1].stdout.readline() == "locked\n"
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("more", [[], ["child"]])
def test_another_process(hold, more, tmp_path):
    """Its lock dies with it, although a process that it has started lives on."""
    process = hold(tmp_path, *more)
    message = f"OUTPUT_DIR {tmp_path} is in use by another training, process {process.pid} on "
    with pytest.raises(BlockingIOError, match=message):
        lock_folder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lock_folder(tmp_path)


def test_the_same_process(tmp_path):
    """It trains there again. What else it reads does not end the lock."""
    for _ in range(2):
        lock_folder(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == [".lock"]
    child = os.fork()
    if child == 0:  # it has no lock, as if it was another program
        try:
            lock_folder(tmp_path / "new")
        except BlockingIOError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_of_several_processes_the_first(hold, tmp_path, monkeypatch):
    hold(tmp_path)
    monkeypatch.setenv("RANK", "1")
    lock_folder(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock_folder(tmp_path)
    assert "cannot be locked (No locks available)" in caplog.text


def test_a_folder_that_was_moved(tmp_path):
    """A new one of its name is locked anew."""
    folder = tmp_path / "output"
    lock_folder(folder)
    folder.rename(tmp_path / "output-1")
    lock_folder(folder)
    assert (folder / ".lock").exists()
