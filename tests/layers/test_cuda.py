"""What only a GPU can show: order of sums, graphs, streams, devices, launches, memory."""

import functools

import pytest
import torch
from torch.autograd import DeviceType
from torch.testing import assert_close

import dcn_projects.layers
from dcn_projects.layers import deform_conv
from tests.devices import CUDA
from tests.layers import operators, reference
from tests.layers.operators.deform_conv import TENSORS, make_inputs

pytestmark = list(CUDA.marks)

# Name: operator and a function (device, dtype) -> arguments. Many samples meet in a pixel.
OPERATORS = {
    f"{name}, {kind}".removesuffix(", "): (
        getattr(dcn_projects.layers, name),
        functools.partial(operators.module(name).make_inputs, **options),
    )
    for name, kinds in operators.having("CUDA_CASES").items()
    for kind, options in kinds.items()
}
DTYPES = [torch.float16, torch.float32, torch.float64]
TOLERANCE = {torch.float16: 2e-3, torch.float32: 1e-5, torch.float64: 1e-10}


def results(operator, inputs):
    """
    Returns:
        dict: "out", the result of operator(**inputs), and by name the gradients of sum(out * head),
            where head is of multiples of 1/8 that every dtype holds
    """
    out = operator(**inputs)
    head = ((torch.arange(out.numel(), device=out.device) * 37 % 17 - 8) / 8).to(out.dtype)
    wanted = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), head.view(out.shape))
    return {"out": out, **dict(zip(wanted, grads, strict=True))}


def assert_all_close(actual, expected, tolerance):
    """Each array of `expected` relative to its largest value."""
    for name, e in expected.items():
        atol = tolerance * e.abs().max().item()
        assert_close(
            actual[name].cpu().double(),
            e.cpu().double(),
            rtol=0,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by matrix products
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_deterministic(deterministic, name, dtype):
    operator, make = OPERATORS[name]
    inputs = make("cuda", dtype)
    first = results(operator, inputs)
    for _ in range(5):
        again = results(operator, inputs)
        assert [k for k in first if not torch.equal(again[k], first[k])] == []

    exact = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    exact["input"] = exact["input"].cpu().double().requires_grad_()
    expected = results(getattr(reference, operator.__name__), exact)
    assert expected.keys() == {"out", "input"}
    assert_all_close(first, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_deterministic_sums_have_a_scale_of_their_own(deterministic, name, scale):
    operator, make = OPERATORS[name]
    inputs = make("cuda", torch.float32)
    out = operator(**inputs)
    unit, scaled = (
        torch.autograd.grad(out, inputs["input"], torch.full_like(out, v), retain_graph=True)[0]
        for v in (1.0, scale)
    )
    assert_all_close({"input": scaled.double() / scale}, {"input": unit}, 1e-5)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deterministic_gradient_shows_what_is_not_finite(deterministic, name, bad):
    operator, make = OPERATORS[name]
    inputs = make("cuda", torch.float32)
    out = operator(**inputs)
    head = torch.zeros_like(out)
    head.view(-1)[0] = bad
    (grad,) = torch.autograd.grad(out, inputs["input"], head)
    assert grad.isnan().all()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("mode", [False, True], ids=["fast", "deterministic"])
def test_graph(request, name, mode):
    if mode:
        request.getfixturevalue("deterministic")
    operator, make = OPERATORS[name]
    inputs = make("cuda", torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(operator, inputs)  # libraries set themselves up
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = operator(**inputs)
        (captured,) = torch.autograd.grad(out, inputs["input"], torch.ones_like(out))
    with torch.no_grad():
        inputs["input"].copy_(inputs["input"].flip(0) * 2)
    graph.replay()
    expected = operator(**inputs)
    (grad,) = torch.autograd.grad(expected, inputs["input"], torch.ones_like(expected))
    assert_all_close({"out": out, "input": captured}, {"out": expected, "input": grad}, 1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_does_not_wait_for_the_device(name):
    operator, make = OPERATORS[name]
    inputs = make("cuda", torch.float32)
    results(operator, inputs)  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(operator, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPERATORS)
def test_runs_on_the_current_stream(name):
    operator, make = OPERATORS[name]
    inputs = make("cuda", torch.float32)
    expected = results(operator, inputs)
    values = inputs["input"].detach().clone()
    inputs["input"].data.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # other streams would not wait for the values
        inputs["input"].data.copy_(values)
        actual = results(operator, inputs)
    torch.cuda.synchronize()
    assert_all_close(actual, expected, 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
@pytest.mark.parametrize("name", OPERATORS)
def test_second_device(name):
    operator, make = OPERATORS[name]
    assert torch.cuda.current_device() == 0
    actual = results(operator, make("cuda:1", torch.float32))
    assert all(t.device == torch.device("cuda:1") for t in actual.values())
    assert_all_close(actual, results(operator, make("cuda:0", torch.float32)), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_address_that_vectors_cannot_have(dtype):
    inputs = make_inputs("cuda", dtype, C=16)
    expected = results(deform_conv, inputs)
    values = inputs["input"].detach()
    N, C, H, W = values.shape
    shifted = values.new_empty(values.numel() + 1)[1:].view(N, H, W, C).permute(0, 3, 1, 2)
    shifted.copy_(values)
    assert shifted.data_ptr() % 16
    actual = results(deform_conv, inputs | {"input": shifted.requires_grad_()})
    assert_all_close(actual, expected, TOLERANCE[dtype])


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="older versions of torch round a product of 16-bit matrices to 16 bits",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weight_gradient_is_summed_in_float32(dtype):
    # The columns of four images do not fit into one chunk. What the first two give cancels with the
    # last two but for 1/64.
    inputs = make_inputs("cpu", dtype, N=1, C=64, out_channels=8, size=(90, 90))
    inputs = {k: v.detach().cuda() if k in TENSORS else v for k, v in inputs.items()}
    inputs["weight"].requires_grad_()
    tensors = ["input", "offset", "mask"]
    four = inputs | {k: inputs[k].repeat(4, 1, 1, 1) for k in tensors}
    out = deform_conv(**four)
    head = (torch.arange(out[0].numel(), device="cuda") % 3 - 1).view(1, *out.shape[1:]).to(dtype)
    heads = torch.cat([head, head, -63 / 64 * head, -63 / 64 * head])
    (grad,) = torch.autograd.grad(out, inputs["weight"], heads)

    exact = {k: v.detach().double() if k in TENSORS else v for k, v in inputs.items()}
    exact["weight"].requires_grad_()
    (one,) = torch.autograd.grad(deform_conv(**exact), exact["weight"], head.double())
    assert_all_close({"weight": grad}, {"weight": one * 2 / 64}, 1e-2)


def conv5(dtype):
    """ResNet's conv5 for two images of 800 x 1333 pixels: arguments of the operators themselves."""
    torch.manual_seed(0)
    input = torch.randn(2, 512, 25, 42, dtype=dtype, device="cuda")
    weight = torch.randn(512, 512, 3, 3, dtype=dtype, device="cuda")
    offset = 2 * torch.randn(2, 18, 25, 42, device="cuda")
    mask = torch.rand(2, 9, 25, 42, device="cuda")
    return input, offset, weight, mask, [1, 1], [1, 1], [1, 1], False


def count_launches(function):
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == DeviceType.CUDA]
    assert names, "the profiler saw no kernel"
    return names


def test_launches():
    *tensors, stride, padding, dilation, legacy = conv5(torch.bfloat16)
    numbers = (stride, padding, dilation, legacy)
    bias = torch.randn(512, dtype=torch.bfloat16, device="cuda")
    ops = torch.ops.dcn_projects
    out = ops.deform_conv(*tensors, bias, *numbers)
    forward = count_launches(lambda: ops.deform_conv(*tensors, bias, *numbers))
    assert len(forward) <= 4, forward
    backward = count_launches(lambda: ops._deform_conv_backward(out, *tensors, *numbers))
    assert len(backward) <= 8, backward


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_memory(dtype):
    MiB, chunk = 2**20, 32 * 2**20
    input = torch.randn(1, 256, 200, 304, dtype=dtype, device="cuda")
    weight = torch.randn(256, 256, 3, 3, dtype=dtype, device="cuda")
    offset, mask = (torch.randn(1, c, 200, 304, device="cuda") for c in (18, 9))
    numbers = ([1, 1], [1, 1], [1, 1], False)

    def extra(function):
        """Bytes beyond inputs and results, at the highest."""
        function()  # the libraries keep their own
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function()
        results = torch.cuda.memory_allocated() - before
        del kept
        return torch.cuda.max_memory_allocated() - before - results

    X = input.nbytes  # as much as the result
    ops = torch.ops.dcn_projects
    peak = extra(lambda: ops.deform_conv(input, offset, weight, mask, None, *numbers))
    assert peak <= X + chunk + 8 * MiB, peak / MiB
    arguments = (input, input, offset, weight, mask, *numbers)
    peak = extra(lambda: ops._deform_conv_backward(*arguments))
    wide = 0 if dtype == torch.float32 else 2 * X  # the gradient of a 16-bit map is float32 first
    assert peak <= 2 * X + chunk + wide + 8 * MiB, peak / MiB
