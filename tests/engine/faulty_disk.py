"""
A small training on a disk that fails: it is killed, or refused a write, at an operation on a file
of its OUTPUT_DIR, and resumed. Each run is a fork of one process that has imported everything.

    python -m tests.engine.faulty_disk FOLDER [STEP]

does so at every STEP-th operation, or at a few, and writes FOLDER/report.json: what was not as in a
training to which nothing happened.
"""

import ctypes
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

SOURCE = Path(__file__).with_name("write_faults.c")
ROOT = Path(__file__).parents[2]
CONFIG = "Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml"
KILLED = -9
OPTIONS = """
MODEL.DEVICE cpu MODEL.ROI_HEADS.NUM_CLASSES 2 DATASETS.TRAIN ('disk_test',)
DATASETS.TEST ('disk_test',) DATALOADER.EXACT_RESUME True SEED 7 DATALOADER.NUM_WORKERS 0
SOLVER.IMS_PER_BATCH 1 SOLVER.MAX_ITER 4 SOLVER.CHECKPOINT_PERIOD 2 INPUT.MIN_SIZE_TRAIN (48,)
INPUT.MIN_SIZE_TEST 48 MODEL.RPN.POST_NMS_TOPK_TEST 8 MODEL.ROI_BOX_HEAD.FC_DIM 16
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.FPN.OUT_CHANNELS 16
""".split()


def start(folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run this file as a program, with the operations of its processes under its control."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "write_faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", SOURCE, "-o", library, "-ldl"], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{ROOT}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.engine.faulty_disk", str(folder), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, **options)


def make_data():
    import numpy as np
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from PIL import Image

    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(3)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(name)
    box = dict(bbox=[8, 9, 28, 31], bbox_mode=0, category_id=0, iscrowd=0)
    records = [
        dict(file_name=os.path.abspath(n), image_id=i, width=64, height=48, annotations=[box])
        for i, n in enumerate(names)
    ]
    DatasetCatalog.register("disk_test", lambda: records)
    MetadataCatalog.get("disk_test").set(thing_classes=["a", "b"], evaluator_type="coco")


def run(output: Path, *words: str, at: int = -1, error: int = 0) -> tuple[int, str]:
    """
    Train in a process of its own.

    Args:
        output: OUTPUT_DIR; beside it are FOLDER.log, and FOLDER.trace, the operations on its files
        at: the operation that fails, counted from 0; -1 lets none fail
        error: with which it fails, and all later ones; 0 kills the process there
    Returns:
        exit code, and what was printed
    """
    from dcn_projects.engine import parse_arguments, run_program

    log = output.with_suffix(".log")
    child = os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        output.with_suffix(".trace").unlink(missing_ok=True)
        ctypes.CDLL(None).arm_write_faults(str(output).encode(), ctypes.c_long(at), error)
        options = ["--config-file", CONFIG, *words, *OPTIONS, "OUTPUT_DIR", str(output)]
        try:
            run_program(parse_arguments(options))
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
            isinstance(e.code, str) and print(e.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def outcome(output: Path) -> dict:
    """What a training has left, without times."""
    import torch

    model = torch.load(output / "model_final.pth", weights_only=True)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    times = ("time", "data_time", "rank_data_time", "eta_seconds")
    return {
        "iteration": model["iteration"],
        "model": {name: value.tolist() for name, value in model["model"].items()},
        "metrics": [repr({k: v for k, v in x.items() if k not in times}) for x in lines],
        "results": repr(json.loads((output / "results.json").read_text())),
        "last": (output / "last_checkpoint").read_text(),
        "parts": [path.name for path in output.glob("*.part")],
    }


def differences(output: Path, expected: dict) -> list[str]:
    actual = outcome(output)
    return [key for key, value in expected.items() if actual[key] != value]


def kill_and_resume(output: Path, at: int, expected: dict) -> str:
    """Returns what is not as without the kill; '' if nothing is."""
    shutil.rmtree(output, ignore_errors=True)
    code, log = run(output, at=at)
    if code != KILLED:
        return f"exit code {code} instead of a kill: {log[-500:]}"
    code, log = run(output, "--resume")
    if code or "Traceback" in log:
        return f"resumed, exit code {code}: {log[-1500:]}"
    return ", ".join(differences(output, expected))


def fail_and_resume(output: Path, at: int, error: int, expected: dict) -> str:
    """As `kill_and_resume`, where the program has to say what failed, in one line."""
    shutil.rmtree(output, ignore_errors=True)
    code, log = run(output, at=at, error=error)
    last = log.splitlines()[-1]
    if (
        code != 1
        or not (last.startswith("error: ") and str(output) in last)
        or os.strerror(error) not in last
    ):
        return f"exit code {code}: {log[-1500:]}"
    if "Traceback" in log or log.count("log.txt cannot be written") > 1:
        return f"more than one line: {log[-3000:]}"
    code, log = run(output, "--resume")
    return ", ".join(differences(output, expected)) if code == 0 else log[-1500:]


def a_few(trace: list[str]) -> list[int]:
    """Numbers of operations: one in five of those that are the middle one of several in a row."""
    rows = [[*group] for _, group in itertools.groupby(enumerate(trace), lambda item: item[1])]
    return [row[len(row) // 2][0] for row in rows][1::5]


def main(folder: Path, step: int | None) -> int:
    """Returns the number of operations after which something was not as without them."""
    os.chdir(folder)
    make_data()
    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    code, log = run(whole)
    assert code == 0, log
    trace = re.sub(r"[.]\d+[.]part", ".part", whole.with_suffix(".trace").read_text()).splitlines()
    expected = outcome(whole)
    points = range(0, len(trace), step) if step else a_few(trace)
    report = {"operations": trace, "kills": {}, "failures": {}}
    for at in points:
        report["kills"][f"{at} {trace[at]}"] = kill_and_resume(folder / "killed", at, expected)
    errors = itertools.cycle((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG))
    for at, error in zip(points[:: 1 if step else 2], errors):
        kind = f"{at} {trace[at]}: {errno.errorcode[error]}"
        report["failures"][kind] = fail_and_resume(folder / "failed", at, error, expected)
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    wrong = {
        at: what for kind in ("kills", "failures") for at, what in report[kind].items() if what
    }
    print(f"{len(report['kills'])} kills and {len(report['failures'])} failures of a disk")
    print("\n".join(f"{at}: {what}" for at, what in wrong.items()))
    return len(wrong)


if __name__ == "__main__":
    where, how = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if "LD_PRELOAD" in os.environ:
        sys.exit(min(main(where, int(how[0]) if how else None), 1))
    else:
        sys.exit(start(where, *how).returncode)
