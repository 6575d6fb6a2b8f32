"""
Deformable convolution beside the dense convolution of the same shape, dtype and padding and beside
torchvision's. Must and goal are those of the project; a ratio column stands left of its own.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import measure
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from dcn_projects.layers import deform_conv


class Case(NamedTuple):
    """(N, C, H, W) -> O; `model` says whether it is there to meet the model of the odd shapes."""

    name: str
    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    deformable_groups: int = 1
    odd: bool = False

    @property
    def geometry(self) -> dict[str, int]:
        padding = self.kernel // 2 * self.dilation
        return dict(stride=self.stride, padding=padding, dilation=self.dilation)

    @property
    def size(self) -> tuple[int, int]:
        """(Ho, Wo): the padding keeps the size but for the stride."""
        return (self.H - 1) // self.stride + 1, (self.W - 1) // self.stride + 1

    def __str__(self):
        return f"{self.name} ({self.N}, {self.C}, {self.H}, {self.W}) -> {self.O}"


CASES = [
    Case("a", 1, 512, 38, 50, 512),
    Case("a2 dilated", 1, 512, 50, 84, 512, dilation=2),
    Case("b", 1, 128, 100, 152, 128),
    Case("c", 2, 256, 50, 76, 256),
    Case("c G=4", 2, 256, 50, 76, 256, deformable_groups=4),
    Case("d", 1, 256, 200, 304, 256),
    Case("e", 1, 512, 25, 42, 512),
    Case("f64", 1, 64, 100, 152, 64),
    Case("f32", 1, 32, 100, 152, 32),
    Case("g", 1, 256, 7, 11, 256),
    Case("h groups=32", 2, 256, 50, 76, 256, groups=32),
    Case("i stride 2", 2, 256, 50, 76, 256, stride=2, odd=True),
    Case("i kernel 1", 2, 256, 50, 76, 256, kernel=1, odd=True),
    Case("i kernel 5", 1, 128, 50, 76, 128, kernel=5, odd=True),
    Case("i C=20", 1, 20, 100, 152, 7, odd=True),
]
BY_NAME = {case.name: case for case in CASES}

# ResNet-101 at 800 x 1333
RESNET = [
    Case("conv3", 1, 128, 100, 167, 128),
    Case("conv4", 1, 256, 50, 84, 256),
    Case("conv5", 1, 512, 25, 42, 512),
    Case("conv5 dilated", 1, 512, 50, 84, 512, dilation=2),
]

PASSES = ["forward", "backward", "both"]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
MB = 1e6

# (must, goal) by pass
DENSE_CPU = dict(forward=(1.45, 1.25), backward=(1.5, 1.25), both=(1.5, 1.25))
TORCHVISION_CPU = dict(forward=(2, 4), backward=(None, None), both=(5, 10))
DENSE_CUDA = {
    4: dict(forward=(1.6, 1.35), backward=(2.2, 1.7), both=(None, None)),
    2: dict(forward=(4, 3), backward=(8, 5), both=(None, None)),
}
TORCHVISION_CUDA = {
    4: dict(forward=(1.4, 2), backward=(1.7, 2.5), both=(None, None)),
    2: dict(forward=(5, 8), backward=(4, 7), both=(None, None)),
}


def dense_goals(case: Case, part: str, device: str, dtype: torch.dtype):
    if device == "cuda":
        known = case.groups == 1 and not case.odd
        return DENSE_CUDA[dtype.itemsize][part] if known else (None, None)
    if dtype != torch.float32:
        return None, None
    if case.groups > 1:
        return 5, 3
    if case.odd:
        # Gather and sweep take 10 and 26 cycles for K*C/16 values, the products K*C*O/32; within 4.
        forward, backward = 1.1 + 2 * 10 / case.O, 1.1 + 26 / case.O
        model = dict(forward=forward, backward=backward, both=(forward + 2 * backward) / 3)
        return 4 * model[part], None
    if min(case.C, case.O) >= 128:
        return DENSE_CPU[part]
    return {64: (2, 1.5), 32: (3, 2.2)}[case.C] if part == "both" else (None, None)


def torchvision_goals(part: str, device: str, dtype: torch.dtype):
    if device == "cuda":
        return TORCHVISION_CUDA[dtype.itemsize][part]
    return TORCHVISION_CPU[part] if dtype == torch.float32 else (None, None)


# Candidates


class Inputs(NamedTuple):
    x: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def make_inputs(
    case: Case, device: str, dtype: torch.dtype, sigma=2.0, layout="NCHW", modulated=True
) -> Inputs:
    channels = case.deformable_groups * case.kernel**2
    x = torch.randn(case.N, case.C, case.H, case.W, device=device, dtype=dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    offset = sigma * torch.randn(case.N, 2 * channels, *case.size, device=device)
    mask = torch.rand(case.N, channels, *case.size, device=device) if modulated else None
    shape = (case.O, case.C // case.groups, case.kernel, case.kernel)
    weight = torch.randn(shape, device=device, dtype=dtype)
    tensors = [x, offset.to(dtype), None if mask is None else mask.to(dtype), weight]
    return Inputs(*(t if t is None else t.requires_grad_() for t in tensors))


def ours(case: Case, inputs: Inputs) -> Tensor:
    x, offset, mask, weight = inputs
    return deform_conv(x, offset, weight, mask=mask, **case.geometry)


def theirs(case: Case, inputs: Inputs) -> Tensor:
    # In float32, as its autocast does it too: it has no bfloat16.
    x, offset, mask, weight = (t if t is None else t.float() for t in inputs)
    out = torchvision.ops.deform_conv2d(x, offset, weight, mask=mask, **case.geometry)
    return out.to(inputs.x.dtype)


def dense(case: Case, inputs: Inputs) -> Tensor:
    return F.conv2d(inputs.x, inputs.weight, groups=case.groups, **case.geometry)


def forward_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    return torch.no_grad()(lambda: op(case, inputs))


def backward_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    """The backward pass alone, on a kept graph."""
    out = op(case, inputs)
    grad = torch.randn_like(out)
    wanted = [inputs.x, inputs.weight] if op is dense else [t for t in inputs if t is not None]
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def both_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    """A new graph each time, to be captured."""
    grad = torch.randn_like(op(case, inputs))
    wanted = [inputs.x, inputs.weight] if op is dense else [t for t in inputs if t is not None]
    return lambda: torch.autograd.grad(op(case, inputs), wanted, grad)


def calls(name: str, op: Callable, case: Case, sets: Sequence[Inputs]) -> dict[str, measure.Call]:
    return {
        f"{name} forward": measure.rotate([forward_call(op, case, i) for i in sets]),
        f"{name} backward": measure.rotate([backward_call(op, case, i) for i in sets]),
    }


def product_calls(case: Case, device: str, dtype: torch.dtype) -> dict[str, measure.Call]:
    """
    The matrix products of a convolution, O x KC x NP. cuDNN may choose Winograd's algorithm, which
    no deformable operator can use.
    """
    pixels, inner = case.N * case.size[0] * case.size[1], case.kernel**2 * case.C
    weight = torch.randn(case.O, inner, device=device, dtype=dtype)
    column = torch.randn(inner, pixels, device=device, dtype=dtype)
    grad = torch.randn(case.O, pixels, device=device, dtype=dtype)
    return {
        "product forward": lambda: weight @ column,
        "product backward": lambda: (weight.T @ grad, grad @ column.T),
    }


def input_sets(case: Case, args: argparse.Namespace, dtype: torch.dtype, **options):
    first = make_inputs(case, args.device, dtype, **options)
    more = measure.copies(measure.nbytes(first), args) - 1
    return [first, *(make_inputs(case, args.device, dtype, **options) for _ in range(more))]


def measured(case: Case, args: argparse.Namespace, dtype: torch.dtype):
    """
    Returns:
        dict: seconds per round of ours, torchvision and dense, each for all PASSES. On CUDA dense
            is the faster of the two layouts and, in float32, not faster than the products
    """
    sets = input_sets(case, args, dtype)
    candidates = {
        **calls("dense", dense, case, sets),
        **calls("ours", ours, case, sets),
        **calls("torchvision", theirs, case, sets),
    }
    if args.device == "cuda":
        last = [i._replace(x=_channels_last(i.x), weight=_channels_last(i.weight)) for i in sets]
        candidates |= calls("channels-last", dense, case, last)
        if dtype == torch.float32 and case.groups == 1:
            candidates |= product_calls(case, args.device, dtype)
    times = measure.rounds(candidates, args, slow=[n for n in candidates if "torchvision" in n])
    for part in PASSES[:2]:
        if f"channels-last {part}" in times:
            options = [times[f"{name} {part}"] for name in ["dense", "channels-last"]]
            times[f"dense {part}"] = min(options, key=statistics.median)
        if f"product {part}" in times:
            options = [times[f"{name} {part}"] for name in ["dense", "product"]]
            times[f"dense {part}"] = max(options, key=statistics.median)
    for name in ["ours", "dense", "torchvision"]:
        parts = [times[f"{name} {part}"] for part in PASSES[:2]]
        times[f"{name} both"] = measure.total(*parts)
    return times


def _channels_last(t: Tensor) -> Tensor:
    return t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


# Tables

MUST_GOAL = ["must", "goal"]
CUDA_NOTE = (
    "Dense: cuDNN in the faster layout, in float32 (TF32 off) the slower of it and the matrix "
    "products O x KC x NP. torchvision computes in float32."
)


def shapes_table(report, title: str, cases: Sequence[Case], dtype: torch.dtype, args):
    columns = ["case", "pass", "ms", "ours / dense", *MUST_GOAL, "torchvision / ours", *MUST_GOAL]
    note = "Dense in the layout of the input." if args.device == "cpu" else CUDA_NOTE
    with report.table(f"{title}, {str(dtype)[6:]}", columns, note) as add:
        gains = {part: [] for part in PASSES}
        for case in cases:
            times = measured(case, args, dtype)
            for part in PASSES:
                o, d, t = (times[f"{name} {part}"] for name in ["ours", "dense", "torchvision"])
                gains[part].append(measure.ratio(t, o))
                add(
                    str(case),
                    part,
                    measure.ms(o),
                    measure.ratio(o, d),
                    *dense_goals(case, part, args.device, dtype),
                    gains[part][-1],
                    *torchvision_goals(part, args.device, dtype),
                )
        for part in PASSES:
            medians = [gain.median for gain in gains[part]]
            gain = measure.Ratio(statistics.median(medians), min(medians), max(medians))
            goals = torchvision_goals(part, args.device, dtype)
            add("all", part, None, None, None, None, gain, *goals)


def offsets_table(report, case: Case, args):
    variants = {f"sigma {s}": dict(sigma=s) for s in [0, 0.5, 2, 10]}
    variants["no mask, sigma 2"] = dict(modulated=False)
    columns = ["offsets", "pass", "ms", "ratio", "to", *MUST_GOAL]
    with report.table(f"Offsets and mask, {case}", columns) as add:
        candidates = {}
        for name, options in variants.items():
            sets = input_sets(case, args, args.dtype, **options)
            candidates |= calls(name, ours, case, sets)
        times = measure.rounds(candidates, args)
        for name in variants:
            for part in PASSES[:2]:
                base, goals = "sigma 0.5", (None, None)
                if name == "sigma 10":
                    goals = 1.25, 1.10
                if name.startswith("no mask"):
                    base, goals = "sigma 2", (1.0, 1.0)
                t = times[f"{name} {part}"]
                if name == base:
                    add(name, part, measure.ms(t), None, None, None, None)
                    continue
                ratio = measure.ratio(t, times[f"{base} {part}"])
                add(name, part, measure.ms(t), ratio, base, *goals)


def dtypes_table(report, case: Case, args):
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    columns = ["dtype", "layout", "pass", "ms", "/ own float32", *MUST_GOAL]
    columns += ["/ own NCHW", "/ dense", "dense / its float32"]
    with report.table(f"Dtypes and layouts, {case}", columns) as add:
        candidates = {}
        for dtype in dtypes:
            for layout in LAYOUTS:
                sets = input_sets(case, args, dtype, layout=layout)
                candidates |= calls(f"ours {dtype} {layout}", ours, case, sets)
                candidates |= calls(f"dense {dtype} {layout}", dense, case, sets)
        if args.device == "cpu":  # seconds, but where there are instructions for it
            candidates = {
                n: call for n, call in candidates.items() if "dense torch.float16" not in n
            }
        times = measure.rounds(candidates, args)
        for dtype in dtypes:
            for layout in LAYOUTS:
                for part in PASSES[:2]:
                    o, d = (times.get(f"{n} {dtype} {layout} {part}") for n in ["ours", "dense"])
                    o32, d32 = (
                        times[f"{n} torch.float32 {layout} {part}"] for n in ["ours", "dense"]
                    )
                    low = dtype != torch.float32
                    add(
                        str(dtype)[6:],
                        layout,
                        part,
                        measure.ms(o),
                        measure.ratio(o, o32) if low else None,
                        *((1.0, 0.7) if low and args.device == "cpu" else (None, None)),
                        None
                        if layout == "NCHW"
                        else measure.ratio(o, times[f"ours {dtype} NCHW {part}"]),
                        measure.ratio(o, d) if d else None,
                        measure.ratio(d, d32) if d and low else None,
                    )


def memory_table(report, case: Case, args):
    columns = ["dtype", "layout", "pass", "ours MB", "goal", "dense MB", "torchvision MB"]
    note = "Peak beyond inputs and results."
    small = case._replace(H=8, W=8)
    with report.table(f"Memory, {case}", columns, note) as add:
        for dtype in [torch.float32, torch.bfloat16]:
            for layout in LAYOUTS:
                for part, make in [("forward", forward_call), ("backward", backward_call)]:
                    # torchvision's takes seconds, and always works in float32 and NCHW.
                    once = dtype == torch.float32 and layout == "NCHW"
                    peaks = []
                    for op in [ours, dense, theirs] if once else [ours, dense]:
                        for c in [small, case]:  # the first call loads code
                            call = make(op, c, make_inputs(c, args.device, dtype, layout=layout))
                            peak = measure.peak_bytes(call, args) / MB
                            del call
                        peaks.append(peak)
                    peak, *others = peaks
                    goal = _memory_goal(case, part, layout, args.device, dtype)
                    add(
                        str(dtype)[6:],
                        layout,
                        part,
                        peak,
                        goal,
                        *(others if once else [*others, None]),
                    )


def _memory_goal(case: Case, part: str, layout: str, device: str, dtype: torch.dtype):
    """MB; None where none is set."""
    b, pixels = dtype.itemsize, case.N * case.H * case.W
    X, Y = pixels * case.C * b, case.N * case.size[0] * case.size[1] * case.O * b
    chunk = 32 * 2**20  # columns
    if part == "forward":
        copy = X if layout == "NCHW" else 0
        if device == "cuda":
            return (copy + chunk) / MB
        return copy / MB + 16 if b == 4 else None
    if layout != "NCHW":
        return None
    if device == "cuda":
        accumulators = (case.O * case.kernel**2 + (pixels if b < 4 else 0)) * case.C * 4
        return (X + Y + chunk + accumulators) / MB
    return (2 * X + Y) / MB + 64 if b == 4 else None


def threads_table(report, cases: Sequence[Case], args):
    n = args.threads if args.threads > 1 else min(measure.cpu_count(), 16)
    columns = ["case", "pass", f"ms on {n}", "ours 1 / n", "dense 1 / n", "efficiency", *MUST_GOAL]
    note = (
        "Wall time, of little worth if the load average (see above) exceeds the threads; "
        "efficiency: speed-up relative to that of the dense convolution."
    )
    with report.table(f"1 and {n} threads", columns, note) as add:
        for case in cases:
            sets = input_sets(case, args, args.dtype)
            pairs = calls("ours", ours, case, sets) | calls("dense", dense, case, sets)
            candidates = {
                f"{name} {threads}": measure.on_threads(threads, call)
                for name, call in pairs.items()
                for threads in [1, n]
            }
            times = measure.rounds(candidates, args, wall=True)
            torch.set_num_threads(args.threads)
            for part in PASSES[:2]:
                o1, on, d1, dn = (
                    times[f"{name} {part} {threads}"]
                    for name in ["ours", "dense"]
                    for threads in [1, n]
                )
                speedups = [[a / b for a, b in zip(*pair)] for pair in [(o1, on), (d1, dn)]]
                efficiency = measure.ratio(*speedups)
                ratios = measure.ratio(o1, on), measure.ratio(d1, dn)
                add(str(case), part, measure.ms(on), *ratios, efficiency, 0.85, 0.95)


# CUDA only


def kernel_counts(call: measure.Call) -> tuple[int, int]:
    """(kernels, copies and fills) of one call."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == cuda]
    moves = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return len(names) - moves, moves


def launches_table(report, case: Case, args):
    columns = ["dtype", "pass", "kernels", "must", "copies, fills", "dense's", "torchvision's"]
    with report.table(f"Kernels launched, {case}", columns) as add:
        for dtype in [torch.float32, torch.bfloat16]:
            inputs = make_inputs(case, "cuda", dtype)
            for part, make, must in [("forward", forward_call, 4), ("backward", backward_call, 8)]:
                counts = [kernel_counts(make(op, case, inputs)) for op in [ours, dense, theirs]]
                (kernels, moves), *others = counts
                add(str(dtype)[6:], part, kernels, must, moves, *(sum(c) for c in others))


def graphs_table(report, cases: Sequence[Case], args):
    columns = ["case", "dtype", "pass", "ms", "captured ms", "captured, ours / dense"]
    columns += ["torchvision / ours", *MUST_GOAL]
    note = "Captured: as a CUDA graph, which an operator that waits for the GPU cannot become."
    with report.table("CUDA graphs", columns, note) as add:
        for case in cases:
            for dtype in [torch.float32, torch.bfloat16]:
                sets = input_sets(case, args, dtype)
                for part, make in [("forward", forward_call), ("both", both_call)]:
                    eager = {
                        name: [make(op, case, i) for i in sets]
                        for name, op in [("ours", ours), ("dense", dense), ("torchvision", theirs)]
                    }
                    candidates = {name: measure.rotate(c) for name, c in eager.items()}
                    for name in ["ours", "dense"]:
                        graphs = [measure.captured(call) for call in eager[name]]
                        candidates[f"{name} captured"] = measure.rotate(graphs)
                    times = measure.rounds(candidates, args)
                    add(
                        str(case),
                        str(dtype)[6:],
                        part,
                        measure.ms(times["ours"]),
                        measure.ms(times["ours captured"]),
                        measure.ratio(times["ours captured"], times["dense captured"]),
                        measure.ratio(times["torchvision"], times["ours"]),
                        *((2, 4) if case.name == "conv5" else (None, None)),
                    )


def deterministic(call: measure.Call) -> measure.Call:
    def run():
        torch.use_deterministic_algorithms(True)
        try:
            return call()
        finally:
            torch.use_deterministic_algorithms(False)

    return run


def deterministic_table(report, cases: Sequence[Case], args):
    columns = ["case", "dtype", "ms", "deterministic ms", "ratio"]
    with report.table("Deterministic backward", columns) as add:
        for case in cases:
            for dtype in [torch.float32, torch.bfloat16]:
                sets = input_sets(case, args, dtype)
                call = calls("ours", ours, case, sets)["ours backward"]
                candidates = {"plain": call, "deterministic": deterministic(call)}
                times = measure.rounds(candidates, args)
                ratio = measure.ratio(times["deterministic"], times["plain"])
                add(str(case), str(dtype)[6:], *map(measure.ms, times.values()), ratio)


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("deform_conv", args)
    shapes = [BY_NAME[n] for n in (["f32", "g", "i C=20"] if args.quick else BY_NAME)]
    usual = BY_NAME["f32" if args.quick else "c"]
    if args.device == "cuda":  # what matters most first: the time may be limited
        layers = RESNET[2:3] if args.quick else RESNET
        small = [case._replace(N=2) for case in RESNET[1:3]]
        for dtype in [torch.float32, torch.bfloat16]:
            for N in [2, 16]:
                cases = [case._replace(N=N) for case in layers]
                shapes_table(report, f"ResNet-101, batch {N}", cases, dtype, args)
        launches_table(report, small[-1], args)
        graphs_table(report, small, args)
        deterministic_table(report, small, args)
    shapes_table(report, "Shapes", shapes, args.dtype, args)
    offsets_table(report, usual, args)
    dtypes_table(report, usual, args)
    memory_table(report, BY_NAME["f32" if args.quick else "d"], args)
    if args.device == "cpu":
        threads_table(report, shapes[1:2] if args.quick else [BY_NAME[n] for n in "ace"], args)
    else:
        for N in [2, 16]:
            cases = [case._replace(N=N) for case in layers]
            shapes_table(report, f"ResNet-101, batch {N}", cases, torch.float16, args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
