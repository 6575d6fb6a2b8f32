"""What tests call soft_nms with: see the package."""

import torch
from torch.testing import assert_close

from dcn_projects.layers import multiclass_soft_nms
from tests.layers import reference
from tests.layers.fuzzing import (
    SEEDS,
    WIDE,
    WILD,
    YES_OR_NO,
    by_fallback,
    calls,
    fallback_results,
    lay_out,
    on_threads,
    other_calls,
)

# Of inclusive corners: the published implementations, run on them.
BOXES = [[0, 0, 99, 99], [10, 10, 109, 109], [0, 0, 99, 49], [200, 200, 259, 259], [20, 0, 119, 99]]
PUBLISHED = [
    ("gaussian", dict(sigma=0.6), [0, 3, 2, 1, 4], [0.9, 0.6, 0.461468, 0.313004, 0.088349]),
    ("gaussian", dict(sigma=0.5), [0, 3, 2, 1, 4], [0.9, 0.6, 0.424571, 0.259443, 0.062466]),
    ("linear", dict(iou_threshold=0.3), [0, 3, 2, 1, 4], [0.9, 0.6, 0.35, 0.17479, 0.033868]),
    ("hard", dict(iou_threshold=0.3), [0, 3], [0.9, 0.6]),
]


def make_boxes(N=200, seed=0, dtype=torch.float64, device="cpu", extent=300.0, side=60.0):
    """(N, 4) of many sizes, in which each meets some of the others."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(N, 2, generator=generator, dtype=torch.float64) * extent
    size = torch.randn(N, 2, generator=generator, dtype=torch.float64).exp() * side
    return torch.cat([centre - size / 2, centre + size / 2], 1).to(device=device, dtype=dtype)


def make_scores(*shape, seed=1, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=generator, dtype=torch.float64)
    return scores.to(device=device, dtype=dtype)


def make_inputs(device="cpu", dtype=torch.float64, N=200):
    boxes, scores = make_boxes(N, dtype=dtype, device=device), make_scores(N, dtype=dtype)
    return {"boxes": boxes, "scores": scores.to(device)}


def thread_calls(rand, forward_backward):
    boxes, scores = 50 * rand(300, 4).detach(), rand(300, 5).detach()
    return {"": lambda: [multiclass_soft_nms(boxes, scores)]}


def fuzz_case(choose):
    dtype, method = choose(WIDE), choose(["linear", "gaussian", "hard"])
    # In float32 the order of two scores may depend on the last bit of exp() after some boxes.
    few = dtype == torch.float32 and method == "gaussian"
    return {
        "dtype": dtype,
        "R": choose(range(choose([9, 30, 71]))),
        "classes": choose(range(1, 5)),
        "span": choose([5, 60, 1000]),  # small: all boxes overlap
        "wild": choose([0.0, 0.2]),
        "copies": choose([1, 2]),
        "own_boxes": choose(YES_OR_NO),
        "layout": choose(["contiguous", "sliced", "transposed", "unaligned"]),
        "threads": choose([1, 2, 3]),
        "again": other_calls(choose),
        "seed": choose(SEEDS),
        "numbers": {
            "method": method,
            "sigma": choose([1e-40, 0.01, 0.5, 10.0]),
            "iou_threshold": choose([0.0, 0.3, 0.7, 1.0]),
            "score_threshold": choose([0.0, 0.001, 0.3]),
            "max_per_class": choose([1, 2] if few else [None, 1, 10]),
        },
    }


def fuzz_tensors(case, device):
    """
    Returns:
        boxes (R, 4) or (R, K * 4), scores (R, K). Copies of a box have scores of their own: which
        of two equal ones is taken first may depend on the last bit. In float32 coordinates are
        integers, so that areas are exact.
    """
    generator = torch.Generator().manual_seed(case["seed"])
    R, K = case["R"], case["classes"]
    own = K if case["own_boxes"] else 1
    boxes = torch.rand(R, own, 4, generator=generator, dtype=torch.float64)
    boxes[..., 2:] = boxes[..., :2] * case["span"] + 30 * boxes[..., 2:] - 1  # some are reversed
    boxes[..., :2] *= case["span"]
    if case["dtype"] == torch.float32:
        boxes = boxes.round()
    wild = torch.rand(boxes.shape, generator=generator) < case["wild"] / 4
    choice = torch.randint(3, boxes.shape, generator=generator)  # NaN, Inf, -Inf
    boxes = torch.where(wild, WILD[choice], boxes).repeat(case["copies"], 1, 1)
    scores = torch.rand(len(boxes), K, generator=generator, dtype=torch.float64) - 0.1
    return [
        lay_out(t.to(device, case["dtype"]), case["layout"]) for t in (boxes.flatten(1), scores)
    ]


def reference_scores(boxes, scores, **numbers):
    """multiclass_soft_nms by the reference."""
    out = torch.zeros_like(scores)
    for k in range(scores.shape[1]):
        own = (boxes[:, 4 * k : 4 * k + 4] if boxes.shape[1] > 4 else boxes).clone()
        own[~own.isfinite().all(1)] = torch.tensor([1, 1, 0, 0]).to(own)  # overlap none
        indices, values = reference.soft_nms(own, scores[:, k], **numbers)
        out[indices, k] = torch.tensor(values, dtype=out.dtype)
    return out


def check(case, device, expected_results):
    boxes, scores = fuzz_tensors(case, device)
    if expected_results is fallback_results or case["dtype"] == torch.float32:
        expected = by_fallback(multiclass_soft_nms, boxes.cpu(), scores.cpu(), **case["numbers"])
    else:
        expected = reference_scores(boxes.cpu(), scores.cpu(), **case["numbers"])
    tolerance = 1e-9 if case["dtype"] == torch.float64 else 1e-5
    for threads, tensors in calls(case | {"extreme": True}, {"boxes": boxes, "scores": scores}):
        actual = on_threads(threads, multiclass_soft_nms, **tensors, **case["numbers"]).cpu()
        if not torch.equal(actual, expected):
            assert_close(actual, expected, rtol=tolerance, atol=1e-12)
    return 1 + len(case["again"])


FUZZ = (fuzz_case, check, 200)
