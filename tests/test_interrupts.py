"""Ctrl-C ends every program with one line and the exit code 130."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.digits_data import CONFIG, ROOT, SMALL

PROGRAMS = [*(ROOT / "demo").glob("*.py"), *(ROOT / "tools").glob("*.py"), ROOT / "train_net.py"]
PROGRAMS = {str(path.relative_to(ROOT)) for path in PROGRAMS}
INSTALLER = "tools/install_detectron2.py"  # which imports the standard library alone
# A module that each imports last, or when it has its arguments.
SLOW = dict.fromkeys(sorted(PROGRAMS - {INSTALLER}), "torch")
SLOW |= {"tools/plot_training.py": "matplotlib", "tools/make_wheelhouse.py": "argparse"}


def start(*command, path=ROOT, **variables):
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **variables}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(process):
    """As a terminal does: also the processes that it started."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("program", SLOW)
def test_while_modules_are_imported(program, tmp_path):
    (tmp_path / f"{SLOW[program]}.py").write_text("raise KeyboardInterrupt\n")
    process = start(program, "--config-file", CONFIG, "--input", "a.jpg", path=tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_what_a_library_makes_of_it(tmp_path):
    """An error of its own, as where Ctrl-C comes while it tidies up."""
    text = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "torch.py").write_text(f"{text}except KeyboardInterrupt:\n    raise ValueError\n")
    process = start("train_net.py", "--config-file", CONFIG, path=tmp_path)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_the_installer(tmp_path):
    """While it waits for the archive."""
    os.mkfifo(tmp_path / "archive")
    process = start(INSTALLER, "--archive", tmp_path / "archive", "--wheel-dir", tmp_path)
    with open(tmp_path / "archive", "wb"):  # waits until it is read
        interrupt(process)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "interrupted\n")


def wait_for(process, text, path):
    """Until a file is there that has the text, or the process is not."""
    for _ in range(3000):
        if process.poll() is not None or path.exists() and text in path.read_text():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_a_training_before_it_begins(datasets, tmp_path):
    options = [*SMALL.split(), f"OUTPUT_DIR={tmp_path}"]
    process = start(
        *("train_net.py", "--config-file", CONFIG, *options),
        **{"DETECTRON2_DATASETS": str(datasets), "CUDA_VISIBLE_DEVICES": ""},
    )
    wait_for(process, "Running with full config", tmp_path / "log.txt")
    interrupt(process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in out + err, out + err
    advice = "No checkpoint of this training is there yet: begin it anew"
    assert err.splitlines()[-1] == f"interrupted. {advice}"


@pytest.mark.parametrize("program", ["train_net.py", "demo/demo.py", "tools/visualize_offsets.py"])
def test_a_prediction(program, tmp_path):
    """After the words of the command were read, and what draws is imported."""
    (tmp_path / "cv2.py").write_text("raise KeyboardInterrupt\n")
    process = start(program, "--config-file", CONFIG, "--predict", "a.jpg", path=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.splitlines()[-1] == "interrupted", err
    assert "Traceback" not in err
