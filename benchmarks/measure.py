"""
What the benchmark programs share: command line, clocks, rounds, peak memory, tables.

    args = measure.parse_args(__doc__)
    report = measure.Report("soft_nms", args)
    with report.table("1000 boxes", ["case", "ms", "theirs / ours"]) as add:
        times = measure.rounds({"ours": lambda: ours(x), "theirs": lambda: theirs(x)}, args)
        add("hard", measure.ms(times["ours"]), measure.ratio(times["theirs"], times["ours"]))
    sys.exit(report.failed)
"""

import argparse
import contextlib
import ctypes
import functools
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

ROOT = Path(__file__).resolve().parents[1]

# Memory that was freed stays with the process: fresh pages cost more than the arithmetic of a small
# operator, and whoever runs next would pay for them. glibc reads these when a process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
WARMUP_ROUNDS = 2
SLOW_SECONDS, SLOW_ROUNDS = 0.2, 3
CUDA_WARMUP_CALLS, CUDA_CALLS = 5, 25

Call = Callable[[], object]


class Ratio(NamedTuple):
    """Of the ratios of all rounds."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f} - {self.high:.2f})"


def environment() -> dict[str, str]:
    """Of a benchmark; the operators beside this folder come before installed ones."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path[0] != str(ROOT):
        path = [str(ROOT), *filter(None, path)]
    return os.environ | MALLOC | {"PYTHONPATH": os.pathsep.join(path)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; 1 counts CPU time")
    parser.add_argument("--rounds", type=int, help="default 9, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, to try it out")


def parse_args(description: str) -> argparse.Namespace:
    """
    Reads the command line. Starts the program once more if the environment is not as it has to be.

    Returns:
        Namespace: device, dtype (a torch.dtype), threads, rounds, json (a Path or None), quick
    """
    if environment() != os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment())
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="file for the numbers, rewritten with each row")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype)
    args.rounds = args.rounds or (2 if args.quick else 9)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return args


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine_name(device: str) -> str:
    """Of the GPU or of the CPU's model."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return model[1] if model else platform.machine()


# Time


def _cpu_seconds(call: Call, calls: int, clock: Call) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def _cuda_seconds(call: Call, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def rounds(
    candidates: dict[str, Call],
    args: argparse.Namespace,
    slow: Collection[str] = (),
    wall: bool = False,
) -> dict[str, list[float]]:
    """
    Calls all candidates in turn, round after round. Short ones are called several times a round.

    Args:
        slow: names of yardsticks that get one warm-up and three rounds, the first ones, if a call
            takes more than 0.2 s
        wall: on the CPU, take wall time even with one thread, to compare with several
    Returns:
        dict: seconds of one call, for each candidate a list over rounds
    """
    cuda = args.device == "cuda"
    # CPU time is immune to neighbours, but adds up over threads.
    clock = time.perf_counter if wall or args.threads > 1 else time.process_time
    seconds = _cuda_seconds if cuda else functools.partial(_cpu_seconds, clock=clock)
    # With the calls of all rounds at least 25, and about 20 ms of them in each.
    least, most, span = (-(-CUDA_CALLS // args.rounds), CUDA_CALLS, 0.02) if cuda else (1, 99, 5e-3)
    calls = dict.fromkeys(candidates, CUDA_WARMUP_CALLS if cuda else 1)
    limits = dict.fromkeys(candidates, args.rounds)
    times = {name: [] for name in candidates}
    for i in range(1 if args.quick else WARMUP_ROUNDS):
        for name, call in candidates.items():
            if i and limits[name] < args.rounds:
                continue
            once = seconds(call, calls[name])
            if name in slow and once > SLOW_SECONDS:
                limits[name] = min(SLOW_ROUNDS, args.rounds)
            calls[name] = min(max(int(span / once), least), most)
    for i in range(args.rounds):
        for name, call in candidates.items():
            if i < limits[name]:
                times[name].append(seconds(call, calls[name]))
    return times


def ms(times: Sequence[float]) -> float:
    """Median in milliseconds."""
    return 1e3 * statistics.median(times)


def total(*times: Sequence[float]) -> list[float]:
    """Round by round, for example of forward and backward."""
    return [sum(row) for row in zip(*times)]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Formed in each round that has both: what disturbs a round disturbs both alike."""
    ratios = [a / b for a, b in zip(numerator, denominator)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


# Inputs and calls


def copies(nbytes: int, args: argparse.Namespace) -> int:
    """How many sets of inputs of `nbytes` to rotate, so that none is still in the GPU's L2."""
    if args.device == "cpu":
        return 1
    return max(2, -(-2 * torch.cuda.get_device_properties(0).L2_cache_size // nbytes))


def rotate(calls: Sequence[Call]) -> Call:
    """One call that does the next of `calls` each time."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def on_threads(threads: int, call: Call) -> Call:
    def run():
        torch.set_num_threads(threads)
        return call()

    return run


def captured(call: Call) -> Call:
    """`call` as a CUDA graph. Raises RuntimeError if it waits for the GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    graph.result = result  # lives in the graph's memory
    return graph.replay


# Memory


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", text)[1])


def nbytes(result) -> int:
    """Of a tensor, a sequence of tensors, None among them, or None."""
    tensors = [result] if result is None or isinstance(result, torch.Tensor) else result
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def peak_bytes(call: Call, args: argparse.Namespace) -> int:
    """
    Memory of one call beyond what there was before and what it returns. On the CPU, code that it
    loads or generates at its first call counts: do one on a small input before.
    """
    if args.device == "cuda":
        call()  # cuDNN tries its algorithms, with workspaces of all sizes
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - nbytes(result)
    ctypes.CDLL(None).malloc_trim(0)  # pages kept for the clocks' sake would be used, unseen
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    before = _status("VmRSS")
    result = call()
    return _status("VmHWM") - before - nbytes(result)


def peak_allocated(call: Call, args: argparse.Namespace) -> int:
    """
    As `peak_bytes`, for the many allocations of a whole model, the result included on the CPU: what
    the process holds depends there on what malloc keeps, so PyTorch's own count is taken.
    """
    if args.device == "cuda":
        return peak_bytes(call, args)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


# Tables


def _output_of(*command) -> str:
    if not shutil.which(command[0]):
        return "unknown"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def header(args: argparse.Namespace) -> dict[str, str]:
    """What a number means nothing without."""
    from dcn_projects.layers import library

    built = time.localtime(next((ROOT / "dcn_projects").glob("_C*.so")).stat().st_mtime)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    extensions = sorted(set(re.findall(r"\b(?:amx_bf16|avx512_bf16|avx512_fp16)\b", cpuinfo)))
    lines = {
        "machine": platform.node(),
        "CPU": f"{machine_name('cpu')}, {cpu_count()} cores",
        "instruction set": " ".join([torch.backends.cpu.get_cpu_capability(), *extensions]),
        "threads": str(args.threads),
        "load average": f"{os.getloadavg()[0]:.1f}",
        "torch, torchvision": f"{torch.__version__}, {torchvision.__version__}",
        "operators": f"{'CPU and CUDA' if library.HAS_CUDA else 'CPU only'}, built "
        f"{time.strftime('%Y-%m-%d %H:%M', built)}, commit "
        + _output_of("git", "describe", "--always", "--dirty"),
        "dtype, rounds": f"{str(args.dtype)[6:]}, {args.rounds}",
    }
    if args.device == "cuda":
        smi = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        lines["GPU"] = f"{machine_name('cuda')}, driver {smi}, CUDA {torch.version.cuda}"
        lines["settings"] = "TF32 off in cuDNN and matmul, cudnn.benchmark on, inputs exceed the L2"
    return lines


def _cell(value) -> str:
    if isinstance(value, list):  # as JSON has it
        value = Ratio(*value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def bullets(header: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in header.items())


def markdown(table: dict) -> str:
    cells = [table["columns"], *([_cell(v) for v in row] for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in cells
    ]
    notes = [table["note"]] if table["note"] else []
    if table["error"]:
        notes.append(f"The table ends early: {table['error']}")
    return "\n\n".join([f"## {table['title']}", *notes, "\n".join(lines)]) + "\n"


class Report:
    """Prints tables in Markdown and keeps the numbers in the file of --json."""

    def __init__(self, title: str, args: argparse.Namespace):
        self.json = args.json
        self.failed = False
        self.content = {"title": title, "header": header(args), "tables": []}
        print(f"# {title} on {args.device}\n\n{bullets(self.content['header'])}", flush=True)

    @contextlib.contextmanager
    def table(self, title: str, columns: Sequence[str], note: str = ""):
        """
        Gives a function that adds a row of as many values as there are columns: str, float, Ratio
        or None. An error ends the table, not the program.
        """
        table = {"title": title, "note": note, "columns": columns, "rows": [], "error": None}
        self.content["tables"].append(table)

        def add(*values):
            assert len(values) == len(columns), (values, columns)
            table["rows"].append(values)
            self._write()

        try:
            yield add
        except Exception as error:
            traceback.print_exc()
            self.failed = True
            table["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            self._write()
        print(f"\n{markdown(table)}", end="", flush=True)

    def _write(self):
        if self.json:
            # The program may be stopped at any time.
            part = self.json.with_suffix(".part")
            part.write_text(json.dumps(self.content, indent=1))
            part.replace(self.json)
