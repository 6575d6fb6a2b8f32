"""Operators that several threads of Python call at once, and calls in other processes."""

import threading

import pytest
import torch

from dcn_projects.layers import deform_conv, deform_roi_pool, multiclass_soft_nms, ps_roi_pool
from tests.devices import DEVICES

THREADS = 8


def calls(device, dtype, seed):
    """By name, functions without arguments that call an operator forward and backward."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape, dtype=dtype):
        values = torch.rand(*shape, generator=generator) * 2 - 1
        return values.to(device, dtype).requires_grad_()

    input = rand(2, 72, 21, 19)
    rois = torch.rand(20, 4, generator=generator) * 60
    rois = torch.cat([torch.arange(20)[:, None] % 2, rois], 1).to(device, dtype)
    bin_offset, bin_mask = rand(20, 4, 3, 3), rand(20, 2, 3, 3)
    offset, mask, weight, bias = (
        rand(2, 36, 21, 19),
        rand(2, 18, 21, 19),
        rand(70, 72, 3, 3),
        rand(70),
    )
    small = rand(70, 36, 3, 3)
    boxes, scores = rand(300, 4).detach() * 50, rand(300, 5).detach()

    def forward_backward(function, *tensors):
        def call():
            out = function(*tensors)
            return [out.detach(), *torch.autograd.grad(out.sum(), tensors)]

        return call

    return {
        "deform_conv": forward_backward(
            lambda *t: deform_conv(*t[:4], padding=1, mask=t[4]), input, offset, weight, bias, mask
        ),
        "deform_conv with groups": forward_backward(
            lambda *t: deform_conv(*t, padding=1), input, offset, small
        ),
        "ps_roi_pool": forward_backward(lambda t: ps_roi_pool(t, rois, 3, 1 / 4), input),
        "deform_roi_pool": forward_backward(
            lambda *t: deform_roi_pool(t[0], rois, t[1], 3, 1 / 4, group_size=3, mask=t[2]),
            input,
            bin_offset,
            bin_mask,
        ),
        "deform_roi_pool with all channels": forward_backward(
            lambda t: deform_roi_pool(t, rois, None, 3, 1 / 4), input
        ),
        "soft_nms": lambda: [multiclass_soft_nms(boxes, scores)],
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_threads_call_at_once(device, dtype):
    work = [calls(device, dtype, seed) for seed in range(THREADS)]
    expected = [{name: call() for name, call in functions.items()} for functions in work]
    actual = [{} for _ in range(THREADS)]
    start = threading.Barrier(THREADS)

    def run(thread):
        names = list(work[thread])
        start.wait()
        for i in range(2 * len(names)):
            name = names[(thread + i) % len(names)]  # different operators meet
            actual[thread][name] = work[thread][name]()

    threads = [threading.Thread(target=run, args=[i]) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(THREADS):
        assert actual[i].keys() == expected[i].keys()
        for name, tensors in expected[i].items():
            for k, (a, e) in enumerate(zip(actual[i][name], tensors, strict=True)):
                if device == "cpu":
                    assert torch.equal(a, e), (i, name, k)
                else:  # the gradient of the input is added up in any order
                    torch.testing.assert_close(a, e)
