"""A training that is asked to end finishes its iteration, saves, and says how to go on."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dcn_projects.engine.stop_signals import STOP_SIGNALS, Stopped, StopSignals, passed_on
from tests.digits_data import CONFIG, ROOT, SMALL

WORDS = ["--config-file", CONFIG, *SMALL.split(), "SOLVER.MAX_ITER", "1000", "SEED", "1"]
WORDS += ["DATALOADER.EXACT_RESUME", "True"]
# Trains until an iteration, and then, while it works on the next one or evaluates, sends a signal.
PROGRAM = """
import os, signal, sys
from dcn_projects.engine import Trainer, parse_arguments, run_program

number, iteration, where, group, rank = (int(word) for word in sys.argv.pop(1).split(","))
here = int(os.environ.get("RANK", "0")) == rank

class Signalled(Trainer):
    def run_step(self):
        self.send(0)
        super().run_step()
        self.send(1)

    def send(self, at):
        if here and (self.iter, at) == (iteration, where):
            os.killpg(0, number) if group else os.kill(os.getpid(), number)

    def test(self, cfg, model, evaluators=None):
        if where == 2:
            os.kill(os.getpid(), number)
            raise AssertionError("the evaluation went on")
        return Trainer.test(cfg, model, evaluators)

def main():
    run_program(parse_arguments(), trainer=Signalled)

if __name__ == "__main__":
    main()
"""


def train(datasets, folder, *words, what, launcher=()):
    """
    Args:
        what: the number of the signal, the iteration before whose step (0), after whose step (1) or
            after which in the evaluation (2) it is sent, and whether to all processes
    """
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, *launcher, folder / "program.py", what, *WORDS, *words]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(datasets),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [*map(str, command), "OUTPUT_DIR", str(folder / "out")]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.run(
        command, cwd=ROOT, env=environment, timeout=300, start_new_session=True, **output
    )


# The processes that load data get the signals of a group, and SIGTERM ends them.
CASES = {
    "before the batch": (signal.SIGTERM, 3, 0, True),
    "after the step": (signal.SIGTERM, 3, 1, True),
    "Ctrl-C": (signal.SIGINT, 3, 0, True),
    "one process": (signal.SIGUSR1, 3, 0, False),
    "evaluation": (signal.SIGHUP, 3, 2, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training(case, datasets, tmp_path):
    number, iteration, where, group = CASES[case]
    what = f"{number:d},{iteration},{where},{int(group)},0"
    words = ["DATALOADER.NUM_WORKERS", "2", "TEST.EVAL_PERIOD", "4" if where == 2 else "0"]
    done = train(datasets, tmp_path, *words, what=what)
    assert done.returncode == 128 + number, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    last = tmp_path / "out/model_0000003.pth"
    name = signal.Signals(number).name
    line = f"{name} after 4 iterations. The last checkpoint is {last}: go on with --resume"
    assert done.stderr.splitlines()[-1] == line
    assert (tmp_path / "out/last_checkpoint").read_text() == last.name
    assert torch.load(last, weights_only=True)["iteration"] == 3


def test_the_last_iteration(datasets, tmp_path):
    """Which is also the first one. Its line was printed already."""
    done = train(datasets, tmp_path, "SOLVER.MAX_ITER", "1", what="15,0,1,0,0")
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr
    last = tmp_path / "out/model_final.pth"
    line = f"SIGTERM after 1 iterations. The last checkpoint is {last}: go on with --resume"
    assert done.stderr.splitlines()[-1] == line
    assert not (tmp_path / "out/results.json").exists()


def test_several_processes(datasets, tmp_path):
    """Only the second one gets the signal, and both end after the same iteration."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
    done = train(datasets, tmp_path, *words, what="15,2,0,0,1", launcher=launcher)
    last = tmp_path / "out/model_0000002.pth"
    line = f"SIGTERM after 3 iterations. The last checkpoint is {last}: go on with --resume"
    assert done.stderr.count(line) == 1, done.stdout + done.stderr
    assert done.returncode != 0 and last.exists()
    assert "exitcode  : 143" in done.stderr, done.stderr


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    assert before == {number: signal.getsignal(number) for number in STOP_SIGNALS}


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_kept(number, signals, capfd):
    with StopSignals(alone=True) as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert "the iteration is finished and saved" in capfd.readouterr().err


def test_where_nothing_has_to_be_finished(signals):
    with pytest.raises(Stopped) as stopped, StopSignals(alone=True) as stop:
        stop.raises = True
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


SECOND = """
import os, signal, time
from dcn_projects.engine.stop_signals import StopSignals
with StopSignals(alone={alone}):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("too long")
"""


@pytest.mark.parametrize("alone", [True, False])
def test_the_second_signal_ends_at_once(alone):
    """Beside other processes one comes twice, from the terminal and from what started them."""
    output = dict(capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", SECOND.format(alone=alone)], **output)
    assert done.returncode == -signal.SIGTERM  # 143 in a shell
    assert done.stdout == ("" if alone else "still here\n")
    assert done.stderr.splitlines()[-1].startswith("SIGTERM: ended at once.")


def test_signals_that_are_ignored_stay_so(signals):
    """As nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(alone=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_has_no_signals():
    with ThreadPoolExecutor() as pool:
        with pool.submit(StopSignals(alone=True).__enter__).result() as stop:
            assert stop.received == 0


def wait_for_a_signal(rank, folder):
    with StopSignals(alone=False) as stop:
        (folder / str(rank)).touch()
        while not stop.received:
            time.sleep(0.01)
    raise Stopped(stop.received)


def test_processes_that_were_started(signals, tmp_path):
    """As detectron2 starts one for each GPU. They get the signal, and their exit code is ours."""

    def send():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(Stopped) as stopped, passed_on():
        torch.multiprocessing.spawn(wait_for_a_signal, (tmp_path,), nprocs=2)
    assert stopped.value.code == 143


def end(rank, how):
    if isinstance(how, str):
        sys.exit(how)
    os.kill(os.getpid(), how)


@pytest.mark.parametrize(
    "how, code",
    [
        ("error: a.jpg is damaged", 1),  # told by the process
        (signal.SIGKILL, "error: a process of the training was killed by SIGKILL"),
    ],
)
def test_a_process_that_ends(how, code, signals):
    with pytest.raises(SystemExit) as ended, passed_on():
        torch.multiprocessing.spawn(end, (how,), nprocs=2)
    assert ended.value.code == code


def test_a_signal_before_they_train(signals, tmp_path):
    """They have no handlers yet."""

    def send():
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    with pytest.raises(Stopped) as stopped, passed_on():
        torch.multiprocessing.spawn(wait_long, nprocs=2)
    assert stopped.value.code == 143


def wait_long(rank):
    time.sleep(300)
