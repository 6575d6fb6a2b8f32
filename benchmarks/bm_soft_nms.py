"""
Soft-NMS beside torchvision's batched_nms, and beside a loop in NumPy. Scores are uniform, so that
every box of every class takes part: a network's softmax leaves a small part of them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import measure
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from dcn_projects.layers import batched_soft_nms, multiclass_soft_nms, soft_nms

HEIGHT, WIDTH = 600, 1000
BOXES, CLASSES = [100, 300, 1000, 2000], [1, 20, 80]
METHODS = ["gaussian", "linear", "hard"]
IOU_THRESHOLD, MOST = 0.3, 100
MUST = {(1000, 80): 25.0}  # milliseconds on one core of a CPU


class Inputs(NamedTuple):
    """Of a box head: boxes (R, 4), scores (R, K). Flat: (R * K, 4), (R * K,) and the classes."""

    boxes: Tensor
    scores: Tensor
    flat_boxes: Tensor
    flat_scores: Tensor
    idxs: Tensor


def make_inputs(R: int, K: int, args: argparse.Namespace) -> Inputs:
    centre = torch.rand(R, 2) * torch.tensor([WIDTH, HEIGHT])
    side = torch.exp(math.log(120) + 0.5 * torch.randn(R, 1))
    aspect = torch.exp(0.3 * torch.randn(R, 1))
    half = side * torch.cat([aspect.sqrt(), 1 / aspect.sqrt()], dim=1) / 2
    boxes = torch.cat([centre - half, centre + half], dim=1).to(args.device, args.dtype)
    scores = torch.rand(R, K).to(args.device, args.dtype)
    idxs = torch.arange(K, device=args.device).repeat(R)
    return Inputs(boxes, scores, boxes.repeat_interleave(K, 0), scores.flatten(), idxs)


def input_sets(R: int, K: int, args: argparse.Namespace) -> list[Inputs]:
    first = make_inputs(R, K, args)
    more = measure.copies(measure.nbytes(first), args) - 1
    return [first, *(make_inputs(R, K, args) for _ in range(more))]


def head(sets: Sequence[Inputs], method: str, most: int | None) -> measure.Call:
    """All classes of a box head, with a result of a fixed size."""

    def call(i: Inputs) -> measure.Call:
        return lambda: multiclass_soft_nms(
            i.boxes, i.scores, method, iou_threshold=IOU_THRESHOLD, max_per_class=most
        )

    return measure.rotate([call(i) for i in sets])


def flat(sets: Sequence[Inputs], method: str) -> measure.Call:
    def call(i: Inputs) -> measure.Call:
        return lambda: batched_soft_nms(
            i.flat_boxes, i.flat_scores, i.idxs, method, iou_threshold=IOU_THRESHOLD
        )

    return measure.rotate([call(i) for i in sets])


def theirs(sets: Sequence[Inputs]) -> measure.Call:
    def call(i: Inputs) -> measure.Call:
        # On the CPU it knows no 16 bits.
        return lambda: batched_nms(
            i.flat_boxes.float(), i.flat_scores.float(), i.idxs, IOU_THRESHOLD
        )

    return measure.rotate([call(i) for i in sets])


def cases_table(report, shapes: Sequence[tuple[int, int]], args):
    columns = ["boxes", "classes", "method", f"ms, {MOST} a class", "ms, all", "must", "ms, flat"]
    columns += [f"batched_nms / {MOST} a class", "batched_nms / flat"]
    if args.device == "cuda":
        columns.append(f"ms, {MOST} a class, as a graph")
    note = (
        f"multiclass_soft_nms, which takes at most {MOST} boxes of each class or all; flat: "
        "batched_soft_nms, all, with the sorting of what it returns, as torchvision's batched_nms."
    )
    with report.table("Boxes and classes", columns, note) as add:
        for R, K in shapes:
            sets = input_sets(R, K, args)
            candidates = {"theirs": theirs(sets)}
            for method in METHODS:
                candidates[f"{method} most"] = head(sets, method, MOST)
                candidates[f"{method} all"] = head(sets, method, None)
                candidates[f"{method} flat"] = flat(sets, method)
                if args.device == "cuda":
                    candidates[f"{method} graph"] = measure.captured(head(sets[:1], method, MOST))
            times = measure.rounds(candidates, args, slow=["theirs"])
            for method in METHODS:
                most, every, flat_ = (times[f"{method} {k}"] for k in ["most", "all", "flat"])
                row = [R, K, method, measure.ms(most), measure.ms(every)]
                row += [MUST.get((R, K)) if args.device == "cpu" else None, measure.ms(flat_)]
                row += [measure.ratio(times["theirs"], t) for t in (most, flat_)]
                if args.device == "cuda":
                    row.append(measure.ms(times[f"{method} graph"]))
                add(*row)


def numpy_soft_nms(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """The Gaussian loop, a box at a time against all that are left."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, keep = np.arange(len(boxes)), []
    while len(left):
        best = scores[left].argmax()
        taken = left[best]
        keep.append(int(taken))
        left = np.delete(left, best)
        low = np.maximum(boxes[left, :2], boxes[taken, :2])
        shared = (np.minimum(boxes[left, 2:], boxes[taken, 2:]) - low).clip(0).prod(1)
        iou = shared / (area[left] + area[taken] - shared)
        scores[left] *= np.exp(-(iou**2) / 0.5)
    return keep


def one_class(R: int, args: argparse.Namespace) -> dict[str, measure.Call]:
    inputs = make_inputs(R, 1, args)
    boxes, scores = inputs.boxes, inputs.scores[:, 0]
    arrays = boxes.float().cpu().numpy(), scores.float().cpu().numpy()
    return {
        "ours": lambda: soft_nms(boxes, scores),
        "numpy": lambda: numpy_soft_nms(arrays[0], arrays[1].copy()),
    }


def numpy_table(report, boxes: Sequence[int], args):
    with report.table("One class in NumPy", ["boxes", "ms", "NumPy's ms", "NumPy / ours"]) as add:
        for R in boxes:
            times = measure.rounds(one_class(R, args), args, slow=["numpy"])
            ratio = measure.ratio(times["numpy"], times["ours"])
            add(R, measure.ms(times["ours"]), measure.ms(times["numpy"]), ratio)


def threads_table(report, shapes: Sequence[tuple[int, int]], args):
    n = args.threads if args.threads > 1 else min(measure.cpu_count(), 16)
    columns = ["boxes", "classes", "taken", f"ms on {n}", "1 / n", "must"]
    note = "Wall time, of little worth if the load average (see above) exceeds the threads."
    with report.table(f"1 and {n} threads, gaussian", columns, note) as add:
        for R, K in shapes:
            sets = input_sets(R, K, args)
            for name, most in [(f"{MOST} a class", MOST), ("all", None)]:
                call = head(sets, "gaussian", most)
                candidates = {k: measure.on_threads(k, call) for k in (1, n)}
                times = measure.rounds(candidates, args, wall=True)
                torch.set_num_threads(args.threads)
                add(R, K, name, measure.ms(times[n]), measure.ratio(times[1], times[n]), 0.8 * n)


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("soft_nms", args)
    shapes = [(R, K) for R in BOXES for K in CLASSES]
    cases_table(report, shapes[:2] if args.quick else shapes, args)
    numpy_table(report, BOXES[:1] if args.quick else [100, 300, 1000], args)
    if args.device == "cpu":
        threads_table(report, shapes[:2] if args.quick else [(300, 80), (1000, 80)], args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
