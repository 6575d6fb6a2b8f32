"""
The operators on inputs that hypothesis draws, against the reference in float64.

The seed is fixed unless `--long HOURS` is given. A failure there prints its seed, and
`--hypothesis-seed SEED` together with `--long 0` repeats it.
"""

import random
import time

import hypothesis
import pytest
import torch
from torch.testing import assert_close

from dcn_projects.layers import deform_conv, deform_roi_pool, multiclass_soft_nms, ps_roi_pool
from tests.devices import DEVICES
from tests.layers import cases, reference

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}


def assert_all_close(actual, expected, tolerance):
    """Relative to the largest value. Values are of order 1; a sum of few may happen to be less."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = tensor.abs().max().item() if tensor.numel() else 0
        assert_close(
            actual[name].detach().cpu().double(),
            tensor.detach(),
            rtol=0,
            atol=tolerance * max(largest, 0.3),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def exact_copies(tensors):
    return {
        k: t.detach()
        .to("cpu", torch.float64, copy=True)
        .contiguous()
        .requires_grad_(t.requires_grad)
        for k, t in tensors.items()
    }


def results(function, tensors, head, numbers):
    """The result and, by name, the gradients of sum(result * head)."""
    out = function(**tensors, **numbers)
    leaves = {k: t for k, t in tensors.items() if t.requires_grad}
    if not out.requires_grad:
        return {"out": out, **{k: torch.zeros_like(t) for k, t in leaves.items()}}
    grads = torch.autograd.grad(out, list(leaves.values()), head, materialize_grads=True)
    for tensor, grad in zip(leaves.values(), grads):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape
    return {"out": out, **dict(zip(leaves, grads))}


def check_deform_conv(case, device):
    torch.set_num_threads(case["threads"])
    tensors = cases.deform_conv_tensors(case, device)
    exact = exact_copies(tensors)
    head, exact_head = tensors.pop("head"), exact.pop("head")
    actual = results(deform_conv, tensors, head, case["numbers"])
    expected = results(reference.deform_conv, exact, exact_head, case["numbers"])
    assert actual["out"].dtype == case["dtype"]
    assert actual["out"].requires_grad == any(t.requires_grad for t in tensors.values())
    if case["integers"] and "offset" in actual:  # the reference has no one-sided derivative
        assert actual["offset"].isfinite().all()
        del actual["offset"], expected["offset"]
    assert_all_close(actual, expected, TOLERANCES[case["dtype"]])


def on_copies(function, copies):
    """`results` of the reference on the first of several copies of each RoI, repeated for all."""

    def run(tensors, head, numbers):
        R = len(head) // copies
        first = {
            k: (t if k == "input" else t[:R]).detach().requires_grad_(t.requires_grad)
            for k, t in tensors.items()
        }
        # The reference cannot read them; these read nothing.
        first["rois"][~first["rois"].isfinite().all(1), 1:] = 1e5
        found = results(function, first, head[:R], numbers)
        return {
            k: t * copies if k == "input" else t.repeat(copies, 1, 1, 1) for k, t in found.items()
        }

    return run


def check_roi_pool(function, slow_function, case, device):
    torch.set_num_threads(case["threads"])
    tensors = cases.roi_pool_tensors(case, device)
    exact = exact_copies(tensors)
    head, exact_head = tensors.pop("head"), exact.pop("head")
    numbers = case["numbers"]
    if function is deform_roi_pool and "offset" not in tensors:
        numbers = {**numbers, "offset": None}
    actual = results(function, tensors, head, numbers)
    expected = on_copies(slow_function, case["copies"])(exact, exact_head, numbers)
    assert actual["out"].dtype == case["dtype"]
    assert actual["out"].requires_grad == any(t.requires_grad for t in tensors.values())
    assert_all_close(actual, expected, TOLERANCES[case["dtype"]])


def check_ps_roi_pool(case, device):
    check_roi_pool(ps_roi_pool, reference.ps_roi_pool, case, device)


def check_deform_roi_pool(case, device):
    check_roi_pool(deform_roi_pool, reference.deform_roi_pool, case, device)


def check_soft_nms(case, device):
    torch.set_num_threads(case["threads"])
    boxes, scores = cases.soft_nms_tensors(case, device)
    actual = multiclass_soft_nms(boxes, scores, **case["numbers"]).cpu()
    expected = torch.zeros_like(scores, device="cpu")
    for k in range(scores.shape[1]):
        own = boxes[:, 4 * k : 4 * k + 4] if case["own_boxes"] else boxes
        own = own.cpu().clone()
        own[~own.isfinite().all(1)] = torch.tensor([1.0, 1, 0, 0]).double()  # overlap none
        indices, values = reference.soft_nms(own, scores[:, k], **case["numbers"])
        expected[indices, k] = torch.tensor(values, dtype=torch.float64)
    assert_close(actual, expected, rtol=1e-9, atol=1e-12)


# The check, its cases, and how many of them a short run has.
CHECKS = {
    "deform_conv": (check_deform_conv, cases.deform_conv_cases(), 500),
    "ps_roi_pool": (check_ps_roi_pool, cases.roi_pool_cases(deformable=False), 200),
    "deform_roi_pool": (check_deform_roi_pool, cases.roi_pool_cases(deformable=True), 200),
    "soft_nms": (check_soft_nms, cases.soft_nms_cases(), 200),
}


@pytest.fixture
def long_run(request):
    """(first seed, seconds), or None for a short run."""
    hours = request.config.getoption("--long", None)
    threads = torch.get_num_threads()
    if hours is None:
        yield None
    else:
        seed = request.config.getoption("--hypothesis-seed", None)
        first = random.SystemRandom().randrange(2**32) if seed is None else int(seed)
        yield first, hours * 3600 / len(CHECKS)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", CHECKS)
def test_matches_reference(operator, device, long_run):
    check, strategy, examples = CHECKS[operator]
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        derandomize=long_run is None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def run():
        hypothesis.given(strategy)(settings(lambda case: check(case, device)))()

    if long_run is None:
        run()
        return
    seed, seconds = long_run
    end = time.monotonic() + seconds
    while True:
        try:
            hypothesis.seed(seed)(run)()
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
        if time.monotonic() > end:
            return
