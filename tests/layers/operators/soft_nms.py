"""What tests call soft_nms with: see the package."""

import torch
from hypothesis import strategies as st
from torch.testing import assert_close

from dcn_projects.layers import multiclass_soft_nms
from tests.layers import reference
from tests.layers.fuzzing import WILD, seeds

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


@st.composite
def fuzz_cases(draw):
    return {
        "R": draw(st.integers(0, 70)),
        "classes": draw(st.integers(1, 4)),
        "span": draw(st.sampled_from([5, 60, 1000])),  # small: all boxes overlap
        "wild": draw(st.sampled_from([0.0, 0.2])),
        "copies": draw(st.integers(1, 2)),
        "own_boxes": draw(st.booleans()),
        "threads": draw(st.sampled_from([1, 3])),
        "seed": draw(seeds),
        "numbers": {
            "method": draw(st.sampled_from(["linear", "gaussian", "hard"])),
            "sigma": draw(st.sampled_from([0.01, 0.5, 10.0])),
            "iou_threshold": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
            "score_threshold": draw(st.sampled_from([0.0, 0.001, 0.3])),
            "max_per_class": draw(st.sampled_from([None, 1, 10])),
        },
    }


def fuzz_tensors(case, device):
    """
    Returns:
        boxes (R, 4) or (R, K * 4), scores (R, K), float64. Copies of a box have scores of their
        own: which of two equal ones is taken first may depend on the last bit.
    """
    generator = torch.Generator().manual_seed(case["seed"])
    R, K = case["R"], case["classes"]
    own = K if case["own_boxes"] else 1
    boxes = torch.rand(R, own, 4, generator=generator, dtype=torch.float64)
    boxes[..., 2:] = boxes[..., :2] * case["span"] + 30 * boxes[..., 2:] - 1  # some are reversed
    boxes[..., :2] *= case["span"]
    wild = torch.rand(boxes.shape, generator=generator) < case["wild"] / 4
    choice = torch.randint(3, boxes.shape, generator=generator)  # NaN, Inf, -Inf
    boxes = torch.where(wild, WILD[choice], boxes).repeat(case["copies"], 1, 1)
    scores = torch.rand(len(boxes), K, generator=generator, dtype=torch.float64) - 0.1
    return boxes.flatten(1).to(device), scores.to(device)


def check(case, device):
    torch.set_num_threads(case["threads"])
    boxes, scores = fuzz_tensors(case, device)
    actual = multiclass_soft_nms(boxes, scores, **case["numbers"]).cpu()
    expected = torch.zeros_like(scores, device="cpu")
    for k in range(scores.shape[1]):
        own = boxes[:, 4 * k : 4 * k + 4] if case["own_boxes"] else boxes
        own = own.cpu().clone()
        own[~own.isfinite().all(1)] = torch.tensor([1.0, 1, 0, 0]).double()  # overlap none
        indices, values = reference.soft_nms(own, scores[:, k], **case["numbers"])
        expected[indices, k] = torch.tensor(values, dtype=torch.float64)
    assert_close(actual, expected, rtol=1e-9, atol=1e-12)


FUZZ = (fuzz_cases(), check, 200)
