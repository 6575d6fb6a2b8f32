"""
Deformable convolution beside the dense convolution of the same shape, dtype and padding and beside
torchvision's. Must and goal are those of the project; a ratio column stands left of its own.
"""

import statistics
import sys
from collections.abc import Sequence

import measure
import torch
from deform_conv_cases import (
    BY_NAME,
    LAYOUTS,
    MB,
    PASSES,
    RESNET,
    Case,
    backward_call,
    both_call,
    calls,
    dense,
    dense_goals,
    forward_call,
    input_sets,
    make_inputs,
    measured,
    ours,
    theirs,
    torchvision_goals,
)

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
