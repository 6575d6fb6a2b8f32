"""Operators that several threads of Python call at once, and calls in other processes."""

import threading

import pytest
import torch

from tests.devices import DEVICES
from tests.layers import operators

THREADS = 8


def calls(device, dtype, seed):
    """By name, functions without arguments that call an operator forward and backward."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        values = torch.rand(*shape, generator=generator) * 2 - 1
        return values.to(device, dtype).requires_grad_()

    def forward_backward(function, *tensors):
        def call():
            out = function(*tensors)
            return [out.detach(), *torch.autograd.grad(out.sum(), tensors)]

        return call

    return {
        f"{name} {kind}".rstrip(): call
        for name, thread_calls in operators.having("thread_calls").items()
        for kind, call in thread_calls(rand, forward_backward).items()
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
