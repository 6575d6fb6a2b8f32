"""Ctrl-C ends every program with one line and the exit code 130."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dcn_projects.engine.output_dir import how_to_go_on, last_saved
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


CASES = {
    "begun": ("log.txt", "Starting training", ""),
    # The workers of a data loader get the signal as well. While they start Python may lose it.
    "saved": ("last_checkpoint", "model_", "SOLVER.CHECKPOINT_PERIOD=1 DATALOADER.NUM_WORKERS=2"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training(case, datasets, tmp_path):
    file, text, options = CASES[case]
    options = [*SMALL.split(), "DATALOADER.NUM_WORKERS=0", *options.split()]
    process = start(
        *("train_net.py", "--config-file", CONFIG, *options),
        *(f"OUTPUT_DIR={tmp_path}", "SOLVER.MAX_ITER=10000"),
        **{"DETECTRON2_DATASETS": str(datasets), "CUDA_VISIBLE_DEVICES": ""},
    )
    wait_for(process, text, tmp_path / file)
    interrupt(process)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in out + err, out + err
    advice = "No checkpoint of this training is there yet: begin it anew"
    if case == "saved":
        last = tmp_path / (tmp_path / "last_checkpoint").read_text()
        advice = f"The last checkpoint is {last}: go on with --resume"
    assert err.splitlines()[-1] == f"interrupted. {advice}"


def test_checkpoints_of_another_training(tmp_path):
    assert "begin it anew" in how_to_go_on(tmp_path, True, last_saved(tmp_path))
    named_by = tmp_path / "last_checkpoint"
    named_by.write_text("model_0000099.pth")
    os.utime(named_by, (1, 1))
    before = last_saved(tmp_path)
    assert "begin it anew" in how_to_go_on(tmp_path, False, before)
    line = f"The last checkpoint is {tmp_path}/model_0000099.pth: go on with --resume"
    assert how_to_go_on(tmp_path, True, before) == line
    named_by.write_text("model_0000199.pth")
    assert how_to_go_on(tmp_path, False, before) == line.replace("099", "199")


@pytest.mark.parametrize("program", ["train_net.py", "demo/demo.py", "tools/visualize_offsets.py"])
def test_a_prediction(program, tmp_path):
    """After the words of the command were read, and what draws is imported."""
    (tmp_path / "cv2.py").write_text("raise KeyboardInterrupt\n")
    process = start(program, "--config-file", CONFIG, "--predict", "a.jpg", path=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.splitlines()[-1] == "interrupted", err
    assert "Traceback" not in err
