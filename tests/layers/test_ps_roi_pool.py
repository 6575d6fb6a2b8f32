import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dcn_projects.layers import PSROIPool, ps_roi_pool
from tests.devices import CUDA, DEVICES, large_zeros, needs_memory
from tests.layers import reference
from tests.layers.operators.ps_roi_pool import make_inputs
from tests.layers.rois import ROIS, SCALE

GOLDENS = Path(__file__).parents[1] / "goldens/mxnet_ops/PSROIPooling.npz"


def result_and_gradient(function, inputs):
    """The result and the gradient of sum(result * head); head is of multiples of 1/8."""
    out = function(**inputs)
    head = ((torch.arange(out.numel()) * 37 % 17 - 8) / 8).view(out.shape).to(out)
    return [out, *torch.autograd.grad(out, inputs["input"], head)]


def assert_all_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        atol = tolerance * e.abs().max().item() if e.numel() else 0
        assert_close(a.cpu().double(), e.cpu().double(), rtol=0, atol=atol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case",
    [
        dict(),
        dict(output_size=(7, 7), D=2),
        dict(output_size=(4, 2)),
        dict(output_size=(4, 6), group_size=(2, 3)),
        dict(output_size=(5, 3), group_size=(2, 2)),
        dict(output_size=(2, 2), group_size=(3, 4)),  # some channels belong to no bin
        dict(group_size=(1, 1), D=5),
        dict(output_size=(1, 1)),
        dict(size=(1, 1)),
        dict(N=1, size=(40, 1), rois=[[0, 0, 10, 4, 170]]),
        dict(N=1, size=(25, 40), rois=[[0, 2, 1, 158, 97]], output_size=(1, 2)),
        dict(N=5, rois=[[n, *roi[1:]] for n in (3, 0, 2) for roi in ROIS], output_size=(2, 3)),
    ],
    ids=str,
)
def test_matches_reference(device, case):
    inputs = make_inputs(device, **case)
    actual = result_and_gradient(ps_roi_pool, inputs)
    assert_all_close(actual, result_and_gradient(reference.ps_roi_pool, inputs), 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("N", [0, 2])
def test_no_rois(device, N):
    out, grad = result_and_gradient(ps_roi_pool, make_inputs(device, N=N, rois=[]))
    assert out.shape == (0, 3, 3, 3) and grad.shape == (N, 27, 9, 8)
    assert not grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_registration(device):
    for case in [dict(size=(5, 4)), dict(rois=[]), dict(N=0, rois=[])]:
        inputs = make_inputs(device, D=2, output_size=(2, 2), **case)
        arguments = [inputs["input"], inputs["rois"], [2, 2], SCALE, [2, 2]]
        torch.library.opcheck(torch.ops.dcn_projects.ps_roi_pool, arguments)
        grad = ps_roi_pool(*arguments).detach()
        arguments = [grad, *arguments[1:], list(inputs["input"].shape)]
        torch.library.opcheck(torch.ops.dcn_projects._ps_roi_pool_backward, arguments)


def test_no_second_derivative():
    inputs = make_inputs()
    loss = ps_roi_pool(**inputs).square().sum()
    (grad,) = torch.autograd.grad(loss, inputs["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="ps_roi_pool has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["g7_d3", "g7_d21", "g7_d3_edges", "g7_d3_half_coordinates"])
def test_matches_mxnet(device, name):
    with np.load(GOLDENS) as arrays:
        attrs = json.loads(str(arrays["index"]))[name]["attrs"]
        data, rois, head_grad, out, grad_data = (
            torch.from_numpy(arrays[f"{name}/{k}"]).to(device)
            for k in ["data", "rois", "head_grad", "out", "grad_data"]
        )
    rois[:, 3:] += 1  # inclusive corners
    data.requires_grad_()
    arguments = (attrs["pooled_size"], attrs["spatial_scale"], attrs["group_size"])
    actual = ps_roi_pool(data, rois, *arguments)
    grad = torch.autograd.grad(actual, data, head_grad)[0]
    assert_all_close([actual, grad], [out, grad_data], 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_values(device, dtype):
    c, y, x = torch.meshgrid(torch.arange(8), torch.arange(6), torch.arange(8), indexing="ij")
    input = (c + 0.5 * y * y + 0.25 * x)[None].to(device=device, dtype=dtype)
    rois = torch.tensor([[3, 5, 60.5, 50.4], [-20, 70, 40, 120], [24, 24, 24, 24]])
    rois = torch.nn.functional.pad(rois + torch.tensor([0, 0, 1, 1]), (1, 0)).to(input)
    expected = torch.tensor(
        [
            [0.5, 1.875, 4.58333, 5.95833, 4.5, 5.875, 8.58333, 9.95833],
            [10.25, 11.5, 14.5, 15.75, 14.25, 15.5, 18.5, 19.75],
            [0.75, 1.75, 2.75, 3.75, 4.75, 5.75, 6.75, 7.75],
        ]
    )
    out = ps_roi_pool(input, rois, 2, 1 / 16)
    assert_close(out.flatten(1), expected.to(input), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_halves_are_rounded_away_from_zero(device):
    # A ramp of one cell a pixel: the mean of cells R(x0), ..., R(x1) - 1 depends on both corners.
    input = torch.arange(8.0, dtype=torch.float64, device=device).view(1, 1, 1, 8)
    rois = [[0, 0.5, 0, 2.5, 1], [0, 1.5, 0, 4.5, 1], [0, -0.5, 0, 2.5, 1], [0, -2.5, 0, -0.5, 1]]
    out = ps_roi_pool(input, torch.tensor(rois).to(input), 1, 1.0)
    assert out.flatten().tolist() == [1.5, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wild_rois(device, dtype):
    nan, inf = float("nan"), float("inf")
    inputs = make_inputs(device, dtype)
    expected = result_and_gradient(ps_roi_pool, inputs)
    wild = [[0, 4, 4, 20, 20] for _ in range(14)]
    for k, roi in enumerate(wild[:12]):
        roi[1 + k % 4] = (nan, inf, -inf)[k // 4]
    wild[12] = [1, -1e38, -1e38, 1e38, 1e38]
    wild[13] = [1, 1e38, 1e38, -1e38, -1e38]
    wild = torch.tensor(wild, dtype=dtype, device=device)
    out, grad = result_and_gradient(
        ps_roi_pool, {**inputs, "rois": torch.cat([inputs["rois"], wild])}
    )
    assert_close(out[: len(ROIS)], expected[0], rtol=0, atol=1e-6)
    assert not out[-14:-2].any() and not out[-1].any()
    # The map is but a point of the bin in the middle.
    middle = inputs["input"][1].mean((1, 2)).view(3, 3, 3)[:, 1, 1]
    assert_close(out[-2, :, 1, 1], middle)
    assert out[-2].count_nonzero() == 3
    assert grad.isfinite().all()
    assert_close(grad[0], expected[1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [2.0, -1.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("device", DEVICES)
def test_index_of_no_image(device, index):
    inputs = make_inputs(device)
    inputs["rois"][3, 0] = index
    if device == "cpu":
        shown = "-?nan" if index != index else f"{index:g}".replace("+", r"\+")
        with pytest.raises(RuntimeError, match=f"RoI 3 is on image {shown} of a batch of 2"):
            ps_roi_pool(**inputs)
    else:
        out, grad = result_and_gradient(ps_roi_pool, inputs)
        assert not out[3].any()
        assert out[0].any() and grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_cells_spread_to_what_reads_them(device, bad):
    inputs = make_inputs(device)
    spot = torch.zeros_like(inputs["input"])
    spot[:, :, 0, 0] = spot[:, :, 4, 3] = spot[:, :, 8, 7] = 1
    expected = reference.ps_roi_pool(**{**inputs, "input": spot}) > 0
    inputs["input"].data[spot > 0] = bad
    out, grad = result_and_gradient(ps_roi_pool, inputs)
    assert torch.equal(~out.isfinite().cpu(), expected)
    assert grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradients_spread_to_what_was_read(device, bad):
    inputs = make_inputs(device)
    out = ps_roi_pool(**inputs)
    head = torch.zeros_like(out)
    head[0, :, 1, 1] = head[3, :, 0, 0] = 1
    (expected,) = torch.autograd.grad(reference.ps_roi_pool(**inputs), inputs["input"], head.cpu())
    (grad,) = torch.autograd.grad(out, inputs["input"], head.masked_fill(head > 0, bad))
    assert expected.any() and torch.equal(~grad.isfinite(), expected != 0)


@pytest.mark.parametrize("device", DEVICES)
def test_memory_layouts(device):
    inputs = make_inputs(device)
    expected = result_and_gradient(ps_roi_pool, inputs)
    channels_last = inputs["input"].detach().to(memory_format=torch.channels_last)
    strided = inputs["input"].detach().repeat_interleave(2, -1)[..., ::2]
    for input in (channels_last, strided):
        assert not input.is_contiguous()
        changed = {
            **inputs,
            "input": input.requires_grad_(),
            "rois": inputs["rois"].repeat_interleave(2, 1)[:, ::2],
        }
        assert_all_close(result_and_gradient(ps_roi_pool, changed), expected, 1e-12)
    # A gradient that is spread from a scalar has strides of 0.
    ps_roi_pool(**inputs).sum().backward()
    (grad,) = torch.autograd.grad(reference.ps_roi_pool(**inputs).sum(), inputs["input"])
    assert_close(inputs["input"].grad, grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("float_rois", [False, True])
def test_16_bits(device, dtype, tolerance, float_rois):
    # Few enough bits for bfloat16.
    rois = [[0, 3.25, 4.75, 25.5, 30], [1, 0.5, 2.5, 10.5, 13.5], [0, -10.5, -6.25, 12, 9.5]]
    inputs = make_inputs(device, dtype, rois=rois)
    if float_rois:
        inputs["rois"] = inputs["rois"].float()
    actual = result_and_gradient(ps_roi_pool, inputs)
    assert all(t.dtype == dtype for t in actual)
    exact = inputs["input"].detach().double().requires_grad_()
    expected = result_and_gradient(reference.ps_roi_pool, {**inputs, "input": exact})
    assert_all_close(actual, expected, tolerance)


def test_threads_do_not_change_the_result():
    inputs = make_inputs(dtype=torch.float32, D=5)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(result_and_gradient(ps_roi_pool, inputs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


ERRORS = [
    (dict(input=(27, 9, 8)), r"input must be \(N, C, H, W\), got \[27, 9, 8\]"),
    (dict(input=(2, 27, 0, 8)), r"input needs channels, and a map .* got \[2, 27, 0, 8\]"),
    (dict(input=(2, 26, 9, 8)), "the 26 channels .* do not divide into groups of 3 x 3"),
    (dict(input=torch.int32), "input must be float16, .* got (Int|torch.int32)"),
    (dict(rois=(8, 4)), r"rois must be \(R, 5\).* got \[8, 4\]"),
    (dict(rois=torch.float32), r"rois must have the dtype of input .* got (Float|torch.float32)"),
    (dict(rois=torch.int64), "rois must have the dtype of input .* got (Long|torch.int64)"),
    (dict(output_size=(0, 3), group_size=3), r"output_size must .* 1 to 32768, got \[0, 3\]"),
    (dict(group_size=(3, -1)), r"group_size must .* 1 to 32768, got \[3, -1\]"),
    (dict(spatial_scale=0.0), "spatial_scale must be positive, got 0"),
    (dict(spatial_scale=float("nan")), "spatial_scale must be positive, got nan"),
]


@pytest.mark.parametrize("device", [*DEVICES, "meta"])  # the last has the fake kernel
@pytest.mark.parametrize("change,message", ERRORS, ids=str)
def test_errors_quote_what_came(device, change, message):
    inputs = make_inputs(device)
    for k, value in change.items():
        if isinstance(value, torch.dtype):
            inputs[k] = inputs[k].detach().to(value)
        elif k in ("input", "rois"):
            inputs[k] = torch.zeros(value, dtype=torch.float64, device=device)
        else:
            inputs[k] = value
    with pytest.raises(RuntimeError, match=f"ps_roi_pool: .*{message}"):
        ps_roi_pool(**inputs)


@pytest.mark.parametrize("device", [CUDA])
def test_error_names_devices(device):
    inputs = make_inputs(device)
    with pytest.raises(RuntimeError, match=r"on the device of input \(cuda:0\), got cpu"):
        ps_roi_pool(**{**inputs, "rois": inputs["rois"].cpu()})


@pytest.mark.parametrize("device", DEVICES)
def test_input_of_more_than_2_31_elements(device):
    needs_memory(device, 12)
    input = large_zeros(2, 12, 9464, 9464, device=device)
    assert input.numel() > 2**31
    input[-1, -1, -1, -1] = 1
    rois = torch.tensor([[1, 9460.0, 9460, 9464, 9464]], device=device)
    expected = torch.zeros(1, 3, 2, 2, device=device)
    expected[0, -1, -1, -1] = 0.25  # of 2 x 2 cells
    assert torch.equal(ps_roi_pool(input, rois, 2, 1.0), expected)


@pytest.mark.parametrize("device", [CUDA])  # half a minute on a CPU
def test_gradient_of_more_than_2_31_elements(device):
    needs_memory(device, 20)
    # The values are not needed here.
    input = torch.zeros(1, 1, 1, 1, device=device).expand(2, 12, 9464, 9464).requires_grad_()
    rois = torch.tensor([[1, 9460.0, 9460, 9464, 9464]], device=device)
    (grad,) = torch.autograd.grad(ps_roi_pool(input, rois, 2, 1.0)[0, -1, -1, -1], input)
    assert grad.count_nonzero() == 4
    assert torch.equal(grad[-1, -1, -2:, -2:], torch.full((2, 2), 0.25, device=device))


def test_module():
    inputs = make_inputs()
    layer = PSROIPool(3, SCALE)
    assert_close(layer(inputs["input"], inputs["rois"]), reference.ps_roi_pool(**inputs))
    assert "output_size=(3, 3), spatial_scale=0.25, group_size=(3, 3)" in repr(layer)
    assert "group_size=(2, 1)" in repr(PSROIPool((4, 2), SCALE, (2, 1)))
