"""
Position-sensitive and deformable RoI pooling beside torchvision's operators. Those have no offsets;
with sampling_ratio=4 they read as many samples. Must and goal are those of the project.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import measure
import torch
import torchvision.ops
from torch import Tensor

from dcn_projects.layers import deform_roi_pool, ps_roi_pool

STRIDE, BINS, SAMPLES = 16, 7, 4
HEIGHT, WIDTH, ROIS = 38, 50, 300
PASSES = ["forward", "backward"]


class Case(NamedTuple):
    """
    D output channels, group_size k, offsets of `classes` classes (0: none); `plain` is ps_roi_pool.
    (must, goal) of both passes: torchvision / ours on one thread of the CPU.
    """

    name: str
    yardstick: str
    D: int
    k: int
    classes: int
    forward: tuple[float, float]
    backward: tuple[float, float]
    plain: bool = False


CASES = [
    Case("PS, D=81, own offsets", "ps_roi_align", 81, 7, 81, (4, 7), (1.5, 4)),
    Case("PS, D=21, own offsets", "ps_roi_align", 21, 7, 21, (4, 7), (1.5, 4)),
    Case("PS, D=8, shared offsets", "ps_roi_align", 8, 7, 1, (3, 5), (2, 3)),
    Case("PS, D=162, no offsets", "ps_roi_align", 162, 7, 0, (5, 8), (5, 9)),
    Case("k=1, D=256, shared offsets", "roi_align", 256, 1, 1, (6, 12), (8, 15)),
    Case("ps_roi_pool, D=81", "ps_roi_pool", 81, 7, 0, (1.5, 3), (1.2, 2), plain=True),
    Case("ps_roi_pool, D=8", "ps_roi_pool", 8, 7, 0, (1, 2), (1, 2), plain=True),
]
GOALS_CUDA = dict(forward=(2, 4), backward=(3, 6))  # deformable PS pooling
READS_CUDA = 5  # within as many times of reading the map once


class Inputs(NamedTuple):
    x: Tensor
    rois: Tensor
    offset: Tensor | None


def make_inputs(case: Case, device: str, dtype: torch.dtype) -> Inputs:
    x = torch.randn(1, case.D * case.k**2, HEIGHT, WIDTH, device=device, dtype=dtype)
    centre = torch.rand(ROIS, 2) * torch.tensor([WIDTH, HEIGHT]) * STRIDE
    side = torch.exp(math.log(120) + 0.5 * torch.randn(ROIS, 1))
    aspect = torch.exp(0.3 * torch.randn(ROIS, 1))
    half = side * torch.cat([aspect.sqrt(), 1 / aspect.sqrt()], dim=1) / 2
    rois = torch.cat([torch.zeros(ROIS, 1), centre - half, centre + half], dim=1).to(device)
    offset = None
    if case.classes:
        offset = torch.randn(ROIS, 2 * case.classes, BINS, BINS, device=device).requires_grad_()
    return Inputs(x.requires_grad_(), rois, offset)


def ours(case: Case, inputs: Inputs) -> Tensor:
    x, rois, offset = inputs
    if case.plain:
        return ps_roi_pool(x, rois, BINS, 1 / STRIDE)
    return deform_roi_pool(x, rois, offset, BINS, 1 / STRIDE, SAMPLES, group_size=case.k)


def theirs(case: Case, inputs: Inputs) -> Tensor:
    op = getattr(torchvision.ops, case.yardstick)
    samples = {} if case.plain else dict(sampling_ratio=SAMPLES)
    out = op(inputs.x.float(), inputs.rois, BINS, spatial_scale=1 / STRIDE, **samples)
    return out.to(inputs.x.dtype)


def calls(name: str, op, case: Case, sets: Sequence[Inputs]) -> dict[str, measure.Call]:
    def forward(inputs: Inputs) -> measure.Call:
        return torch.no_grad()(lambda: op(case, inputs))

    def backward(inputs: Inputs) -> measure.Call:
        out = op(case, inputs)
        grad = torch.randn_like(out)
        wanted = [inputs.x] if op is theirs or inputs.offset is None else [inputs.x, inputs.offset]
        return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)

    return {
        f"{name} forward": measure.rotate([forward(i) for i in sets]),
        f"{name} backward": measure.rotate([backward(i) for i in sets]),
    }


def input_sets(case: Case, args: argparse.Namespace) -> list[Inputs]:
    first = make_inputs(case, args.device, args.dtype)
    more = measure.copies(measure.nbytes(first), args) - 1
    return [first, *(make_inputs(case, args.device, args.dtype) for _ in range(more))]


def goals(case: Case, part: str, args: argparse.Namespace) -> tuple:
    if args.dtype != torch.float32:
        return None, None
    if args.device == "cpu":
        return getattr(case, part)
    return GOALS_CUDA[part] if case.k > 1 and case.classes else (None, None)


def cases_table(report, cases: Sequence[Case], args):
    columns = ["case", "pass", "ms", "torchvision / ours", "must", "goal", "yardstick"]
    if args.device == "cuda":
        columns += ["ours / reading the map", "must"]
    with report.table(f"{ROIS} RoIs, {BINS} x {BINS} bins, map {HEIGHT} x {WIDTH}", columns) as add:
        for case in cases:
            sets = input_sets(case, args)
            candidates = calls("ours", ours, case, sets)
            candidates |= calls("torchvision", theirs, case, sets)
            if args.device == "cuda":
                candidates["read"] = measure.rotate([i.x.detach().sum for i in sets])
            times = measure.rounds(candidates, args)
            for part in PASSES:
                o = times[f"ours {part}"]
                ratio = measure.ratio(times[f"torchvision {part}"], o)
                row = [case.name, part, measure.ms(o), ratio, *goals(case, part, args)]
                row.append(case.yardstick)
                if args.device == "cuda":
                    must = READS_CUDA if case.k > 1 and case.classes else None
                    row += [measure.ratio(o, times["read"]), must]
                add(*row)


def threads_table(report, cases: Sequence[Case], args):
    n = args.threads if args.threads > 1 else min(measure.cpu_count(), 16)
    columns = ["case", "pass", f"ms on {n}", "ours 1 / n", "must", "torchvision / ours"]
    note = (
        "Wall time, of little worth if the load average (see above) exceeds the threads; "
        "torchvision's operators are serial."
    )
    with report.table(f"1 and {n} threads", columns, note) as add:
        for case in cases:
            sets = input_sets(case, args)
            pairs = calls("ours", ours, case, sets) | calls("torchvision", theirs, case, sets)
            candidates = {
                f"{name} {threads}": measure.on_threads(threads, call)
                for name, call in pairs.items()
                for threads in [1, n]
                if threads == n or name.startswith("ours")
            }
            times = measure.rounds(candidates, args, wall=True)
            torch.set_num_threads(args.threads)
            for part in PASSES:
                one, many = times[f"ours {part} 1"], times[f"ours {part} {n}"]
                gain = measure.ratio(times[f"torchvision {part} {n}"], many)
                add(case.name, part, measure.ms(many), measure.ratio(one, many), 0.8 * n, gain)


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("roi_pool", args)
    cases = [case for case in CASES if not args.quick or case.D == 8]
    cases_table(report, cases, args)
    if args.device == "cpu":
        threads_table(report, cases, args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
