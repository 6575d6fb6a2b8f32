import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch.testing import assert_close

from dcn_projects.layers import DeformConv, ModulatedDeformConv, deform_conv
from dcn_projects.layers.library import COMPILED
from tests.devices import CUDA, DEVICES, large_zeros, needs_memory
from tests.layers import reference
from tests.layers.operators.deform_conv import TENSORS, make_inputs

GOLDENS = Path(__file__).parents[1] / "goldens/mxnet_ops"


def gradients(function, inputs, **kwargs):
    """
    Returns:
        dict: "out", the result of function(**inputs, **kwargs), and by name the gradients of
            sum(out * head), where head is of multiples of 1/8 that every dtype holds
    """
    out = function(**inputs, **kwargs)
    head = ((torch.arange(out.numel()) * 37 % 17 - 8) / 8).view(out.shape).to(out)
    names = [k for k in TENSORS if k in inputs]
    return {
        "out": out,
        **dict(zip(names, torch.autograd.grad(out, [inputs[k] for k in names], head), strict=True)),
    }


def assert_all_close(actual, expected, tolerance):
    """Compares two results of `gradients`, each array relative to its largest value."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        atol = tolerance * tensor.abs().max().item() if tensor.numel() else 0
        assert_close(
            actual[name].cpu().double(),
            tensor.cpu().double(),
            rtol=0,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )


CASES = [
    dict(),
    dict(modulated=False),
    dict(stride=2),
    dict(dilation=2, padding=2),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    dict(groups=2),
    dict(deformable_groups=2, modulated=False),
    dict(groups=2, deformable_groups=4),
    dict(groups=4, deformable_groups=2, out_channels=8),
    dict(C=12, groups=2, deformable_groups=3),  # neither kind of group contains the other
    dict(C=140, out_channels=5, size=(3, 4)),  # several blocks of channels, the last one short
    dict(C=192, groups=2, deformable_groups=2, size=(3, 4)),
    dict(C=96, out_channels=96, groups=32, size=(3, 4)),
    dict(C=1, out_channels=1),
    dict(kernel=(1, 1), padding=0),
    dict(kernel=(5, 5), padding=2, stride=2),
    dict(kernel=(3, 1), padding=(1, 0)),
    dict(size=(1, 1)),
    dict(size=(1, 1), kernel=(1, 1), padding=0, reach=1),
    dict(size=(24, 25), C=3, padding=4),  # several tiles of pixels
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(device, case, legacy_border):
    inputs = make_inputs(device, **case)
    assert_all_close(
        gradients(deform_conv, inputs, legacy_border=legacy_border),
        gradients(reference.deform_conv, inputs, legacy_border=legacy_border),
        1e-10,
    )


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device):
    results = gradients(deform_conv, make_inputs(device, N=0, stride=2))
    shapes = {k: tuple(t.shape) for k, t in results.items()}
    assert shapes["out"] == (0, 6, 5, 4) and shapes["input"] == (0, 8, 9, 7)
    assert shapes["offset"] == (0, 18, 5, 4) and shapes["mask"] == (0, 9, 5, 4)
    assert torch.equal(results["weight"].cpu(), torch.zeros(6, 8, 3, 3, dtype=torch.float64))
    assert torch.equal(results["bias"].cpu(), torch.zeros(6, dtype=torch.float64))


def golden_cases(operator):
    with np.load(GOLDENS / f"{operator}.npz") as arrays:
        return [(operator, name) for name in json.loads(str(arrays["index"]))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "operator,name",
    golden_cases("DeformableConvolution") + golden_cases("ModulatedDeformableConvolution"),
)
def test_matches_mxnet(device, operator, name):
    with np.load(GOLDENS / f"{operator}.npz") as arrays:
        case = json.loads(str(arrays["index"]))[name]
        golden = {
            k.split("/")[1]: torch.from_numpy(arrays[k]).to(device)
            for k in arrays.files
            if k.startswith(f"{name}/")
        }
    # Gradients taken numerically are in float64; the others carry the noise of float32.
    dtype = golden.get("grad_data", golden["out"]).dtype
    inputs = {k: golden[k].to(dtype).requires_grad_() for k in case["inputs"]}
    attrs = case["attrs"]
    out = deform_conv(
        inputs["data"],
        inputs["offset"],
        inputs["weight"],
        inputs.get("bias"),
        attrs["stride"],
        attrs["pad"],
        attrs["dilate"],
        inputs.get("mask"),
        legacy_border=operator == "DeformableConvolution",
    )
    results = {"out": out}
    if "head_grad" in golden:
        grads = torch.autograd.grad(out, list(inputs.values()), golden["head_grad"].to(dtype))
        results.update({f"grad_{k}": grad for k, grad in zip(inputs, grads, strict=True)})
    assert_all_close(results, {k: golden[k] for k in results}, 2e-6)


def test_worked_example():
    inputs = {
        "input": torch.arange(1.0, 10).view(1, 1, 3, 3),
        "offset": torch.tensor([-0.25, 0.5]).view(1, 2, 1, 1).repeat(1, 1, 3, 3),
        "weight": torch.ones(1, 1, 1, 1),
        "mask": torch.full((1, 1, 3, 3), 0.5),
    }
    inputs = {k: t.requires_grad_() for k, t in inputs.items()}
    out = deform_conv(**inputs)
    out.sum().backward()
    y = torch.tensor([[0.5625, 0.9375, 0.5625], [1.875, 2.375, 1.3125], [3.375, 3.875, 2.0625]])
    assert_close(out[0, 0], y)
    dy = torch.tensor([[0.75, 1.25, 0.75], [1.5, 1.5, 0.75], [1.5, 1.5, 0.75]])
    dx = torch.tensor([[0.375, 0.375, -1.125], [0.5, 0.5, -2.625], [0.5, 0.5, -4.125]])
    assert_close(inputs["offset"].grad[0], torch.stack([dy, dx]))
    assert_close(inputs["mask"].grad[0, 0], 2 * y)
    grad = torch.tensor([[0.25, 0.5, 0.5], [0.25, 0.5, 0.5], [0.1875, 0.375, 0.375]])
    assert_close(inputs["input"].grad[0, 0], grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [dict(), dict(modulated=False, stride=2), dict(groups=2)], ids=str)
def test_matches_torchvision(device, case):
    inputs = make_inputs(device, **case)
    expected = gradients(torchvision.ops.deform_conv2d, inputs)
    assert_all_close(gradients(deform_conv, inputs), expected, 1e-10)
    positional = [inputs[k] for k in ["input", "offset", "weight", "bias", "stride"]]
    assert_close(
        deform_conv(*positional, 1, 1, inputs.get("mask")),
        torchvision.ops.deform_conv2d(*positional, 1, 1, inputs.get("mask")),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case",
    [dict(), dict(stride=2), dict(dilation=2, padding=2), dict(groups=4, out_channels=8)],
    ids=str,
)
def test_zero_offset_is_a_convolution(device, case):
    inputs = make_inputs(device, modulated=False, **case)
    offset = inputs.pop("offset")
    expected = gradients(F.conv2d, inputs | {"groups": case.get("groups", 1)})
    actual = gradients(deform_conv, inputs, offset=torch.zeros_like(offset))
    assert_all_close(actual, expected, 1e-10)
    halved = deform_conv(**inputs, offset=offset * 0, mask=torch.full_like(offset[:, ::2], 0.5))
    bias = inputs["bias"].view(-1, 1, 1)
    assert_close(halved - bias, (expected["out"] - bias) / 2)


@pytest.mark.parametrize("device", DEVICES)
def test_offset_gradient_at_the_ends_of_the_band(device):
    inputs = make_inputs(device, N=1, C=1, out_channels=1, size=(2, 2), kernel=(1, 1), padding=0)
    inputs["input"].data.fill_(1)
    gradient = {}
    for at in (-1.0, -1 + 1e-6, 0.0, 1.0, 2.0):
        # Output (0, 0) reads row `at`; torchvision has a slope at -1 itself.
        inputs["offset"].data.zero_()[0, 0, 0, 0] = at
        gradient[at] = torch.autograd.grad(deform_conv(**inputs)[0, 0, 0, 0], inputs["offset"])[0]
    weight = (inputs["weight"] * inputs["mask"][0, 0, 0, 0]).item()
    slopes = [gradient[at][0, 0, 0, 0].item() for at in gradient]
    assert slopes == pytest.approx([0, weight, 0, -weight, 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20, -1e20, 2.0**31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wild_offsets_read_nothing(device, legacy_border, value, dtype):
    inputs = make_inputs(device, dtype, deformable_groups=2)
    torch.manual_seed(0)
    wild = torch.rand(inputs["offset"].shape) < 0.2
    far = inputs["offset"].detach().masked_fill(wild.to(device), 100.0).requires_grad_()
    inputs["offset"].data[wild] = value
    actual = gradients(deform_conv, inputs, legacy_border=legacy_border)
    expected = gradients(deform_conv, inputs | {"offset": far}, legacy_border=legacy_border)
    for name in expected:
        assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
    assert actual["offset"].cpu()[wild].abs().max() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_pixels_spread_to_what_reads_them(device, legacy_border, bad):
    inputs = make_inputs(device, groups=2)
    pixels = [(0, 0), (0, 6), (8, 0), (8, 6), (4, 3)]
    touched = torch.zeros_like(inputs["input"])
    for y, x in pixels:
        inputs["input"].data[0, 1, y, x] = bad
        touched[0, 1, y, x] = 1
    positive = {"input": touched, "weight": inputs["weight"].abs(), "bias": inputs["bias"] * 0}
    expected = reference.deform_conv(**inputs | positive, legacy_border=legacy_border) > 0
    actual = gradients(deform_conv, inputs, legacy_border=legacy_border)
    assert torch.equal(~actual["out"].isfinite().cpu(), expected)
    assert actual["input"].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_memory_layouts(device):
    inputs = make_inputs(device)
    expected = gradients(deform_conv, inputs)

    last = dict(inputs)
    for k in ["input", "offset", "weight", "mask"]:
        last[k] = inputs[k].detach().to(memory_format=torch.channels_last).requires_grad_()
    actual = gradients(deform_conv, last)
    assert_all_close(actual, expected, 1e-12)
    assert actual["out"].is_contiguous(memory_format=torch.channels_last)
    assert actual["input"].is_contiguous(memory_format=torch.channels_last)

    sliced = dict(inputs)
    for k in TENSORS:
        sliced[k] = inputs[k].detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_()
        assert not sliced[k].is_contiguous()
    actual = gradients(deform_conv, sliced)
    assert_all_close(actual, expected, 1e-12)
    assert actual["out"].is_contiguous()

    # A gradient that is spread from a scalar has strides of 0.
    sums = torch.autograd.grad(deform_conv(**inputs).sum(), inputs["bias"])
    assert_close(sums[0], torch.full_like(sums[0], 2 * 9 * 7))
    deform_conv(**inputs).sum().backward()
    expected = torch.autograd.grad(reference.deform_conv(**inputs).sum(), inputs["input"])[0]
    assert_close(inputs["input"].grad, expected)


def test_copy_on_write():
    inputs = make_inputs()
    inputs["input"] = inputs["input"].detach().to(memory_format=torch.channels_last)
    lazy = torch._lazy_clone(inputs["input"])
    assert torch.equal(deform_conv(**inputs | {"input": lazy}), deform_conv(**inputs))
    assert torch._C._is_cow_tensor(lazy)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [dict(), dict(C=100, groups=2, deformable_groups=2)], ids=str)
@pytest.mark.parametrize(
    "dtype,tolerance",
    [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)],
    ids=str,
)
@pytest.mark.parametrize("float_offset", [False, True])
def test_precision(device, case, dtype, tolerance, float_offset):
    inputs = make_inputs(device, dtype, **case)
    if float_offset:
        for k in ["offset", "mask"]:
            inputs[k] = inputs[k].detach().float().requires_grad_()
    else:
        # Offsets that 16 bits can hold, away from the integers.
        steps = inputs["offset"].detach().double().mul(8).floor() / 8 + 1 / 16
        inputs["offset"] = steps.to(dtype).requires_grad_()
    actual = gradients(deform_conv, inputs)
    for name, tensor in actual.items():
        assert tensor.dtype == (dtype if name == "out" else inputs[name].dtype)
    # The reference reads the same numbers.
    exact = {
        k: v.detach().double().requires_grad_() if k in TENSORS else v for k, v in inputs.items()
    }
    assert_all_close(actual, gradients(reference.deform_conv, exact), tolerance)


def test_autocast():
    inputs = make_inputs(dtype=torch.float32)
    expected = gradients(deform_conv, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(deform_conv, inputs | {"offset": inputs["offset"].double()})
        mixed = gradients(deform_conv, inputs | {"input": inputs["input"].bfloat16()})
    assert actual["out"].dtype == mixed["out"].dtype == torch.bfloat16
    assert_all_close(actual, expected, 1.5e-2)
    assert_all_close(mixed, expected, 1.5e-2)


def test_autocast_leaves_float64_alone():
    inputs = make_inputs(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(deform_conv, inputs)
    assert_all_close(actual, gradients(deform_conv, inputs), 0)


@pytest.mark.skipif(not COMPILED, reason="torchvision's kernel makes no such promise")
@pytest.mark.parametrize("case", [dict(C=300), dict(N=5, size=(24, 25))], ids=str)
def test_threads_do_not_change_the_result(case):
    inputs = make_inputs(dtype=torch.float32, **case)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(gradients(deform_conv, inputs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(result[k], results[0][k]) for k in result)


@pytest.mark.parametrize("device", DEVICES)
def test_registration(device):
    for case in [dict(), dict(modulated=False, stride=2), dict(N=0)]:
        inputs = make_inputs(device, C=4, out_channels=2, size=(4, 3), **case)
        for layout in (torch.contiguous_format, torch.channels_last):
            tensors = {k: inputs.get(k) for k in TENSORS}
            tensors["input"] = inputs["input"].detach().to(memory_format=layout).requires_grad_()
            geometry = [[inputs[k]] * 2 for k in ["stride", "padding", "dilation"]] + [False]
            arguments = [tensors[k] for k in TENSORS] + geometry
            torch.library.opcheck(torch.ops.dcn_projects.deform_conv, arguments)

            arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
            grad = torch.ops.dcn_projects.deform_conv(*arguments)
            arguments = [grad, *arguments[:4], *geometry]
            torch.library.opcheck(torch.ops.dcn_projects._deform_conv_backward, arguments)


def test_no_second_derivative():
    inputs = make_inputs(N=1, C=1, out_channels=1, size=(2, 2))
    out = deform_conv(**inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs["input"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_mask_that_is_not_finite_is_seen_where_it_is(device, value):
    inputs = {k: v.detach() if torch.is_tensor(v) else v for k, v in make_inputs(device).items()}
    out = deform_conv(**inputs)
    inputs["mask"][1, 4, 5, 2] = value
    changed = deform_conv(**inputs)
    assert not changed[1, :, 5, 2].isfinite().any()
    changed[1, :, 5, 2] = out[1, :, 5, 2]
    assert torch.equal(changed, out)


ERRORS = [
    (dict(input=(8, 9, 7)), r"input must be \(N, C, H, W\), got \[8, 9, 7\]"),
    (dict(weight=(6, 8, 3)), r"weight must be .* got \[6, 8, 3\]"),
    (dict(weight=(6, 5, 3, 3)), r"input has 8 channels, .* the 5 of weight \[6, 5, 3, 3\]"),
    (dict(weight=(6, 0, 3, 3)), r"weight is empty, \[6, 0, 3, 3\]"),
    (dict(weight=(6, 2, 3, 3)), r"6 output channels .* do not divide into 4 groups"),
    (dict(offset=(2, 18, 9, 6)), r"offset must be \(2, 2\*G\*9, 9, 7\), got \[2, 18, 9, 6\]"),
    (dict(offset=(1, 18, 9, 7)), r"offset must be .* got \[1, 18, 9, 7\]"),
    (dict(offset=(2, 17, 9, 7)), r"offset must be .* got \[2, 17, 9, 7\]"),
    (dict(offset=(2, 54, 9, 7)), r"3 deformable groups, into which 8 channels cannot be divided"),
    (dict(mask=(2, 18, 9, 7)), r"mask must be \(2, 9, 9, 7\) .* got \[2, 18, 9, 7\]"),
    (dict(bias=(5,)), r"bias must be \(6\), got \[5\]"),
    (dict(input=torch.int64), "must be float16, bfloat16, .* got (Long|torch.int64)"),
    (dict(input=torch.float8_e5m2), "must be float16, bfloat16, .* got (Float8|torch.float8)_e5m2"),
    (
        dict(weight=torch.float32),
        "input is (Double|torch.float64) but weight (Float|torch.float32)",
    ),
    (
        dict(offset=torch.float32),
        "input is (Double|torch.float64) but offset (Float|torch.float32)",
    ),
    (dict(mask=torch.float16), "input is (Double|torch.float64) but mask (Half|torch.float16)"),
    (dict(stride=0), r"stride must be two numbers from 1 to 2147483647, got \[0, 0\]"),
    (dict(padding=-1), r"padding must be two numbers from 0 to 2147483647, got \[-1, -1\]"),
    (dict(padding=2**62), r"padding must be two numbers from 0 to 2147483647, got \[46116860"),
    (dict(padding=2**30, stride=2**31 - 1), "one padded map must have less than 2.31 pixels"),
    (
        dict(input=(2, 8, 2, 9), padding=0),
        r"convolution input is too small \(output would be 0 x 7\)",
    ),
    (dict(input=(2, 8, 0, 7)), "convolution input is too small"),
]


@pytest.mark.parametrize("device", [*DEVICES, "meta"])  # the last has the fake kernel
@pytest.mark.parametrize("change,message", ERRORS, ids=lambda value: str(value))
def test_errors_quote_what_came(device, change, message):
    inputs = make_inputs(device)
    for k, value in change.items():
        if isinstance(value, tuple):
            inputs[k] = torch.zeros(value, dtype=torch.float64, device=device)
        elif isinstance(value, torch.dtype):
            inputs[k] = inputs[k].detach().to(value)
        else:
            inputs[k] = value
    with pytest.raises(RuntimeError, match=message):
        deform_conv(**inputs)


@pytest.mark.parametrize("device", [CUDA])
def test_error_names_devices(device):
    inputs = make_inputs(device)
    for k in ["input", "offset", "weight", "mask", "bias"]:
        with pytest.raises(RuntimeError, match="is on cpu|on cpu"):
            deform_conv(**inputs | {k: inputs[k].detach().cpu()})


@pytest.mark.parametrize("device", DEVICES)
def test_result_of_more_than_2_31_elements(device):
    needs_memory(device, 12)
    # A single pixel, far within its padding, seen by one output: 65 x 5793 x 5793 elements.
    side = 2896
    size = 2 * side + 1
    offset = torch.zeros(1, 2, 1, 1, device=device).expand(1, 2, size, size)
    input, weight = torch.ones(1, 1, 1, 1, device=device), torch.arange(65.0, device=device)
    with torch.no_grad():
        out = deform_conv(input, offset, weight.view(65, 1, 1, 1), padding=side)
    assert out.numel() > 2**31
    assert out[0, -1].count_nonzero() == 1
    assert torch.equal(out[0, :, side, side], weight)


@pytest.mark.parametrize("device", DEVICES)
def test_input_of_more_than_2_31_elements(device):
    needs_memory(device, 15 if device == "cpu" else 28)
    # The last channel and pixel of the last image, in 16 bits: 11 x 3 x 8192 x 8192 elements.
    side = 2**13
    input = large_zeros(11, 3, side, side, dtype=torch.bfloat16, device=device)
    input[-1, -1, -1, -1] = 1
    weight = torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16, device=device).view(1, 3, 1, 1)
    offset = torch.zeros(11, 2, 2, 2, device=device)
    out = deform_conv(input, offset, weight, stride=side - 1)
    expected = torch.zeros_like(out)
    expected[-1, 0, -1, -1] = 4
    assert torch.equal(out, expected)


@pytest.mark.parametrize("module", [DeformConv, ModulatedDeformConv])
def test_modules(module):
    torch.manual_seed(0)
    arguments = (8, 6, (3, 1), 2, (2, 1), (2, 1), 2, 4)
    layer = module(*arguments, norm=torch.nn.BatchNorm2d(6), activation=F.relu).double()
    modulated = module is ModulatedDeformConv
    names = ["weight", "bias"] if modulated else ["weight"]
    assert [k for k, _ in layer.named_parameters() if "norm" not in k] == names
    assert layer.weight.shape == (6, 4, 3, 1)
    bound = (2 / (4 * 3)) ** 0.5 * 3**0.5  # kaiming_uniform for a ReLU
    assert 0.8 * bound < layer.weight.abs().max() <= bound

    inputs = make_inputs(
        kernel=(3, 1), stride=(2, 2), padding=(2, 1), dilation=(2, 1), groups=2, deformable_groups=4
    )
    tensors = [
        inputs[k] for k in (["input", "offset", "mask"] if modulated else ["input", "offset"])
    ]
    expected = reference.deform_conv(
        *tensors[:2], layer.weight, layer.bias, (2, 2), (2, 1), (2, 1), *tensors[2:]
    )
    assert_close(layer(*tensors), F.relu(layer.norm(expected)))
    plain = module(*arguments, bias=not modulated, legacy_border=True).double()
    assert (plain.bias is None) == modulated
    expected = reference.deform_conv(
        *tensors[:2],
        plain.weight,
        plain.bias,
        (2, 2),
        (2, 1),
        (2, 1),
        *tensors[2:],
        legacy_border=True,
    )
    assert_close(plain(*tensors), expected)
    assert "kernel_size=(3, 1), stride=(2, 2)" in repr(plain)
    assert "legacy_border=True" in repr(plain) and "legacy_border" not in repr(layer)
    with pytest.raises(ValueError, match="8 input and 6 output channels do not divide into 4"):
        module(8, 6, 3, groups=4)


@pytest.mark.parametrize(
    "name,value",
    [
        ("in_channels", 0),
        ("out_channels", -1),
        ("kernel_size", 0),
        ("kernel_size", (3, 0)),
        ("stride", 0),
        ("dilation", (-1, 1)),
        ("groups", 0),
        ("deformable_groups", 0),
        ("padding", -1),
    ],
)
def test_modules_refuse_numbers_that_are_too_small(name, value):
    arguments = {"in_channels": 8, "out_channels": 6, "kernel_size": 3, name: value}
    wording = "not be negative" if name == "padding" else "be positive"
    with pytest.raises(ValueError, match=re.escape(f"{name} must {wording}, got {value}")):
        DeformConv(**arguments)
