import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dcn_projects.layers import DeformROIPool, deform_roi_pool
from tests.devices import CUDA, DEVICES, large_zeros, needs_memory
from tests.layers import reference
from tests.layers.operators.deform_roi_pool import TENSORS, make_inputs
from tests.layers.rois import ROIS, SCALE

GOLDENS = Path(__file__).parents[1] / "goldens/mxnet_ops/DeformablePSROIPooling.npz"


def results(function, inputs):
    """
    Returns:
        dict: "out", the result, and by name the gradients of sum(result * head), where head is of
            multiples of 1/8 that every dtype holds
    """
    out = function(**inputs)
    head = ((torch.arange(out.numel()) * 37 % 17 - 8) / 8).view(out.shape).to(out)
    names = [k for k in TENSORS if inputs.get(k) is not None]
    grads = torch.autograd.grad(out, [inputs[k] for k in names], head)
    return {"out": out, **dict(zip(names, grads))}


def assert_all_close(actual, expected, tolerance):
    """Compares two results, each array relative to its largest value."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(
            actual[name].cpu().double(),
            tensor.cpu().double(),
            rtol=0,
            atol=tolerance * tensor.abs().max().item(),
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "case",
    [
        dict(),
        dict(classes=0, masks=0),
        dict(classes=1, masks=2),
        dict(classes=4, masks=4),
        dict(classes=4, group_size=(3, 3)),  # R-FCN's classification, shrunk
        dict(classes=1, group_size=(3, 3)),  # its regression
        dict(classes=0, D=6, group_size=(3, 3)),  # its offsets
        dict(classes=1, output_size=(2, 4), group_size=(2, 2), part=(1, 2)),
        dict(output_size=(5, 2), group_size=(2, 3), part=(3, 5), sampling_ratio=2),
        dict(output_size=(6, 6), part=(3, 3), group_size=(3, 3), sampling_ratio=1),
        dict(output_size=(1, 1), part=(1, 1), sampling_ratio=9),
        dict(classes=1, D=150, output_size=(2, 2), masks=0),  # several blocks of channels
        dict(size=(1, 1)),
        dict(size=(40, 1), sampling_ratio=4),  # few samples, far apart
        dict(copies=3, D=2, output_size=(2, 2)),
        # One channel for each class: RoIs are worked on in blocks of 16 of one image.
        dict(copies=5, D=3, classes=3, output_size=(2, 2)),
        dict(rois=ROIS[:1], classes=4),
        dict(N=5, rois=[[n, *roi[1:]] for n in (3, 0, 2) for roi in ROIS[:6]], classes=4),
        dict(classes=4, group_size=(2, 2), part=(1, 2), output_size=(3, 5), sampling_ratio=5),
        dict(classes=4, size=(25, 40), rois=[[0, 2, 1, 158, 97]], output_size=(1, 2)),
        dict(classes=0, D=1),
    ],
    ids=str,
)
def test_matches_reference(device, case):
    inputs = make_inputs(device, **case)
    actual = results(deform_roi_pool, inputs)
    assert_all_close(actual, results(reference.deform_roi_pool, inputs), 1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("N", [0, 2])
def test_no_rois(device, N):
    actual = results(deform_roi_pool, make_inputs(device, N=N, rois=[], group_size=(3, 3)))
    shapes = {k: tuple(t.shape) for k, t in actual.items()}
    assert shapes["out"] == (0, 4, 3, 3) and shapes["input"] == (N, 36, 9, 8)
    assert shapes["offset"] == (0, 4, 3, 3) and shapes["mask"] == (0, 1, 3, 3)
    assert not actual["input"].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [dict(), dict(classes=0), dict(rois=[]), dict(N=0, rois=[])])
def test_registration(device, case):
    inputs = make_inputs(device, D=2, size=(5, 4), output_size=(2, 2), group_size=(2, 2), **case)
    tensors = [inputs[k] for k in ["input", "rois", "offset"]]
    numbers = [[2, 2], SCALE, 3, 0.1, [2, 2]]
    torch.library.opcheck(torch.ops.dcn_projects.deform_roi_pool, [*tensors, *numbers])
    tensors = [t if t is None else t.detach() for t in tensors]
    grad = torch.ops.dcn_projects.deform_roi_pool(*tensors, *numbers)
    arguments = [grad, *tensors, *numbers]
    torch.library.opcheck(torch.ops.dcn_projects._deform_roi_pool_backward, arguments)


def test_no_second_derivative():
    inputs = make_inputs()
    (grad,) = torch.autograd.grad(
        deform_roi_pool(**inputs).sum(), inputs["offset"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="deform_roi_pool has no second derivative"):
        grad.sum().backward()


def golden_cases():
    with np.load(GOLDENS) as arrays:
        return list(json.loads(str(arrays["index"])))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", golden_cases())
def test_matches_mxnet(device, name):
    with np.load(GOLDENS) as arrays:
        case = json.loads(str(arrays["index"]))[name]
        golden = {
            k.split("/")[1]: torch.from_numpy(arrays[k]).to(device)
            for k in arrays.files
            if k.startswith(f"{name}/")
        }
    attrs, rois = case["attrs"], golden["rois"]
    rois[:, 3:] += 1  # inclusive corners
    tensors = {k: golden[k].requires_grad_() for k in ["data", "trans"] if k in golden}
    out = deform_roi_pool(
        tensors["data"],
        rois,
        tensors.get("trans"),
        attrs["pooled_size"],
        attrs["spatial_scale"],
        attrs["sample_per_part"],
        attrs.get("trans_std", 0.0),
        attrs["group_size"],
    )
    grads = torch.autograd.grad(out, list(tensors.values()), golden["head_grad"])
    actual = {"out": out.detach(), **{f"grad_{k}": grad for k, grad in zip(tensors, grads)}}
    for k in actual:
        # A sample sits so close to a whole coordinate that float32 decides on its derivative.
        actual[k].view(-1)[golden.get(f"unstable_{k}", [])] = 0
        golden[k].view(-1)[golden.get(f"unstable_{k}", [])] = 0
    assert_all_close(actual, {k: golden[k] for k in actual}, 5e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_values(device, dtype):
    c, y, x = torch.meshgrid(torch.arange(8), torch.arange(6), torch.arange(8), indexing="ij")
    input = (c + 0.5 * y * y + 0.25 * x)[None].to(device=device, dtype=dtype)
    rois = torch.tensor([[3, 5, 60.5, 50.4], [-20, 70, 40, 120], [24, 24, 24, 24]])
    rois = torch.nn.functional.pad(rois + torch.tensor([0, 0, 1, 1]), (1, 0)).to(input)
    first = torch.tensor(
        [
            [0.31348, 1.75488, 3.87988, 5.32129],
            [10.0791, 11.29688, 14.5, 15.71777],
            [0.78281, 1.79531, 2.85781, 3.87031],
        ]
    ).to(input)
    out = deform_roi_pool(input, rois, None, 2, 1 / 16, group_size=2).flatten(1)
    assert_close(out, torch.cat([first, first + 4], 1), rtol=0, atol=1e-5)

    # x of class 0 is 1, y of class 1 is -2.
    offset = torch.tensor([1.0, 0, 0, -2]).to(input).view(1, 4, 1, 1).repeat(3, 1, 2, 2)
    offset.requires_grad_()
    out = deform_roi_pool(input, rois, offset, 2, 1 / 16, group_size=2)
    expected = torch.tensor(
        [
            [0.38613, 1.84707, 3.95254, 5.41348, 4.16686, 5.60827, 7.0166, 8.45801],
            [10.08672, 11.39219, 14.50762, 15.81309, 11.53984, 12.75762, 18.12031, 19.33809],
            [0.78531, 1.79781, 2.86031, 3.87281, 4.75969, 5.77219, 6.82781, 7.84031],
        ]
    )
    assert_close(out.flatten(1), expected.to(input), rtol=0, atol=1e-5)
    grad = torch.autograd.grad(out.sum(), offset)[0].flatten(2)
    expected = [
        [
            [0.09219, 0.09219, 0.09219, 0.09219],
            [0.10781, 0.10781, 0.50313, 0.50313],
            [0.06914, 0.09219, 0.06914, 0.09219],
            [0.04792, 0.04792, 0.35938, 0.35938],
        ],
        [
            [0.04766, 0.09531, 0.04766, 0.09531],
            [0.99609, 0.99609, 0, 0],
            [0, 0.09531, 0, 0.09531],
            [1.275, 1.275, 0.71719, 0.71719],
        ],
    ]
    assert_close(grad[:2], torch.tensor(expected).to(input), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_worked_example(device):
    input = torch.arange(64.0, device=device).view(1, 1, 8, 8)
    rois = torch.tensor([[0, 16.0, 16, 80, 80]], device=device)

    def pool(x, y, sampling_ratio=2):
        offset = torch.tensor([float(x), y], device=device).view(1, 2, 1, 1).requires_grad_()
        out = deform_roi_pool(input, rois, offset.expand(1, 2, 2, 2), 2, 1 / 16, sampling_ratio)
        return out.flatten().tolist(), torch.autograd.grad(out.sum(), offset)[0].flatten().tolist()

    assert pool(0, 0, 4)[0] == [11.25, 13.25, 27.25, 29.25]
    plain = pool(0, 0)[0]
    assert plain == [9, 11, 25, 27]
    assert pool(1, 0)[0] == pytest.approx([v + 0.4 for v in plain])
    assert pool(0, 1)[0] == pytest.approx([v + 3.2 for v in plain])
    out, grad = pool(0.3, 0.3)
    assert out == pytest.approx([v + 1.08 for v in plain])
    assert grad == pytest.approx([4 * 0.4, 4 * 3.2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "position,value,slope",
    [
        (-0.75, 0, 0),  # does not count
        (-0.5, 0, 0),  # counts, clamped
        (0, 0, 0),
        (1e-9, 1e-9, 1),  # 1 - 1e-9 is 1 in float32
        (0.25, 0.25, 1),
        (4, 4, 0),
        (6.75, 6.75, 1),
        (7, 7, 0),
        (7.5, 7, 0),
        (7.75, 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_slope_at_integers_and_borders(device, dtype, position, value, slope, axis):
    # One sample of a map that ascends by 1 a cell along the axis. The RoI is 8 cells long and
    # starts at cell 0, so that the offset is the position.
    input = torch.arange(8, dtype=dtype, device=device).expand(1, 1, 8, 8)
    input = input.transpose(2, 3) if axis else input
    rois = torch.tensor([[0, 1.0, 1, 17, 17]], dtype=dtype, device=device)
    offset = torch.zeros(1, 2, 1, 1, dtype=dtype, device=device)
    offset[0, axis] = position
    offset.requires_grad_()
    out = deform_roi_pool(input, rois, offset, 1, 0.5, sampling_ratio=1, gamma=1 / 8)
    (grad,) = torch.autograd.grad(out.sum(), offset)
    assert out.item() == pytest.approx(value)
    assert grad.flatten().tolist() == ([0, slope] if axis else [slope, 0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e20, -1e38])
@pytest.mark.parametrize("group_size", [(1, 1), (3, 3)])
def test_wild_offsets_read_nothing(device, dtype, value, group_size):
    inputs = make_inputs(device, dtype, group_size=group_size)
    torch.manual_seed(0)
    wild = torch.rand(inputs["offset"].shape) < 0.2
    far = inputs["offset"].detach().masked_fill(wild.to(device), 1e4).requires_grad_()
    inputs["offset"].data[wild] = value
    actual = results(deform_roi_pool, inputs)
    expected = results(deform_roi_pool, {**inputs, "offset": far})
    for name in expected:
        assert_close(actual[name], expected[name], rtol=0, atol=1e-5)
    assert not actual["offset"].cpu()[wild].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wild_rois(device, dtype):
    nan, inf = float("nan"), float("inf")
    wild = [[0, 4, 4, 20, 20] for _ in range(14)]
    for k, roi in enumerate(wild[:12]):
        roi[1 + k % 4] = (nan, inf, -inf)[k // 4]
    wild[12] = [1, -1e38, -1e38, 1e38, 1e38]
    wild[13] = [1, 1e38, 1e38, -1e38, -1e38]
    inputs = make_inputs(device, dtype, rois=ROIS + wild)
    actual = results(deform_roi_pool, inputs)
    tame = {
        **inputs,
        "rois": inputs["rois"][: len(ROIS)],
        "offset": inputs["offset"].detach()[: len(ROIS)].requires_grad_(),
        "mask": inputs["mask"].detach()[: len(ROIS)].requires_grad_(),
    }
    expected = results(deform_roi_pool, tame)
    for name in ["out", "offset"]:
        assert not actual[name][len(ROIS) :].any()
        assert_close(actual[name][: len(ROIS)], expected[name], rtol=0, atol=1e-6)
    assert actual["input"].isfinite().all() and actual["mask"].isfinite().all()


@pytest.mark.parametrize("index", [2.0, -1.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("device", DEVICES)
def test_index_of_no_image(device, index):
    inputs = make_inputs(device)
    inputs["rois"][3, 0] = index
    if device == "cpu":
        shown = "-?nan" if index != index else f"{index:g}".replace("+", r"\+")
        with pytest.raises(RuntimeError, match=f"RoI 3 is on image {shown} of a batch of 2"):
            deform_roi_pool(**inputs)
    else:
        actual = results(deform_roi_pool, inputs)
        assert not actual["out"][3].any() and not actual["offset"][3].any()
        assert actual["out"][0].any() and actual["input"].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_bad_cells_spread_to_what_reads_them(device, bad, classes, sampling_ratio):
    inputs = make_inputs(device, classes=classes, masks=0, sampling_ratio=sampling_ratio)
    spot = torch.zeros_like(inputs["input"])
    spot[:, :, 0, 0] = spot[:, :, 4, 3] = spot[:, :, 8, 7] = 1
    expected = reference.deform_roi_pool(**{**inputs, "input": spot}) > 0
    inputs["input"].data[spot > 0] = bad
    actual = results(deform_roi_pool, inputs)
    assert torch.equal(~actual["out"].isfinite().cpu(), expected)
    assert actual["input"].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [1, 4])
def test_bad_gradients_spread_to_what_was_read(device, bad, classes):
    inputs = make_inputs(device, classes=classes, masks=0)
    out = deform_roi_pool(**inputs)
    head = torch.zeros_like(out)
    head[0, :, 1, 1] = head[3, :, 0, 2] = 1
    expected = reference.deform_roi_pool(**inputs)
    (expected,) = torch.autograd.grad(expected, inputs["input"], head.cpu())
    (grad,) = torch.autograd.grad(out, inputs["input"], head.masked_fill(head > 0, bad))
    assert expected.any() and torch.equal(~grad.isfinite(), expected != 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [dict(), dict(classes=4, group_size=(3, 3))], ids=str)
def test_memory_layouts(device, case):
    inputs = make_inputs(device, **case)
    expected = results(deform_roi_pool, inputs)
    changed = dict(inputs)
    for k in TENSORS:
        last = inputs[k].detach().to(memory_format=torch.channels_last)
        changed[k] = last.requires_grad_()
    assert_all_close(results(deform_roi_pool, changed), expected, 1e-12)
    for k in TENSORS:
        changed[k] = inputs[k].detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
        assert not changed[k].is_contiguous()
    changed["rois"] = inputs["rois"].repeat_interleave(2, 1)[:, ::2]
    assert_all_close(results(deform_roi_pool, changed), expected, 1e-12)
    # A gradient that is spread from a scalar has strides of 0.
    tensors = [inputs[k] for k in TENSORS]
    actual = torch.autograd.grad(deform_roi_pool(**inputs).sum(), tensors)
    expected = torch.autograd.grad(reference.deform_roi_pool(**inputs).sum(), tensors)
    assert_close(actual, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [dict(), dict(classes=4, group_size=(3, 3))], ids=str)
@pytest.mark.parametrize(
    "dtype,tolerance",
    [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)],
    ids=str,
)
@pytest.mark.parametrize("wide", [False, True])
def test_precision(device, case, dtype, tolerance, wide):
    # Corners that bfloat16 holds.
    rois = [[0, 3.25, 4.75, 25.5, 30], [1, 0.5, 2.5, 10.5, 13.5], [0, -10.5, -6.25, 12, 9.5]]
    inputs = make_inputs(device, dtype, rois=rois, masks=2, **case)
    if wide:
        for k in ["rois", "offset", "mask"]:
            inputs[k] = inputs[k].detach().float().requires_grad_(k != "rois")
    actual = results(deform_roi_pool, inputs)
    for name, tensor in actual.items():
        assert tensor.dtype == (dtype if name == "out" else inputs[name].dtype)
    # The reference reads the same numbers.
    exact = {k: inputs[k].detach().double().requires_grad_() for k in TENSORS}
    expected = results(reference.deform_roi_pool, {**inputs, **exact})
    assert_all_close(actual, expected, tolerance)


def test_autocast():
    inputs = make_inputs(dtype=torch.float32)
    expected = results(deform_roi_pool, inputs)
    offset = inputs["offset"].detach().bfloat16()
    exact = results(deform_roi_pool, {**inputs, "offset": offset.float().requires_grad_()})
    with torch.autocast("cpu", torch.bfloat16):
        assert_all_close(results(deform_roi_pool, inputs), expected, 0)
        mixed = results(deform_roi_pool, {**inputs, "offset": offset.requires_grad_()})
        half = results(deform_roi_pool, {**inputs, "input": inputs["input"].bfloat16()})
    assert torch.equal(mixed["out"], exact["out"])
    assert half["out"].dtype == torch.bfloat16
    assert_all_close(half, expected, 2e-2)


@pytest.mark.parametrize(
    "case",
    [
        dict(D=140, classes=2),
        dict(classes=4, group_size=(3, 3)),
        dict(classes=4),
        dict(classes=0, D=70),
    ],
    ids=str,
)
def test_threads_do_not_change_the_result(case):
    inputs = make_inputs(dtype=torch.float32, part=(2, 2), copies=5, **case)
    threads, all_results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            all_results.append(results(deform_roi_pool, inputs))
    finally:
        torch.set_num_threads(threads)
    for other in all_results[1:]:
        assert all(torch.equal(other[k], all_results[0][k]) for k in other)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [10.0, 1e30, 1e300])
@pytest.mark.parametrize("classes", [1, 2])
def test_samples_of_endless_regions_that_do_not_count(device, dtype, gamma, classes):
    """gamma times the length of a region may be infinite, and nothing is read there."""
    input = torch.ones(1, 2, 5, 5, dtype=dtype, device=device, requires_grad=True)
    rois = torch.tensor([[0, -9e37, -9e37, 1e38, 1e38]], dtype=dtype, device=device)
    offset = torch.full((1, 2 * classes, 2, 2), 0.25, dtype=dtype, device=device)
    out = deform_roi_pool(input, rois, offset.requires_grad_(), 2, 1.0, gamma=gamma)
    for tensor in (out, *torch.autograd.grad(out.sum(), [input, offset])):
        assert not tensor.any()


ERRORS = [
    (dict(input=(4, 9, 8)), r"input must be \(N, C, H, W\), got \[4, 9, 8\]"),
    (dict(input=(2, 4, 9, 0)), r"input needs channels, and a map .* got \[2, 4, 9, 0\]"),
    (dict(group_size=3), "the 4 channels .* do not divide into groups of 3 x 3"),
    (dict(input=torch.int32), "input must be float16, .* got (Int|torch.int32)"),
    (dict(rois=(8, 4)), r"rois must be \(R, 5\).* got \[8, 4\]"),
    (dict(rois=torch.float32), r"rois must have the dtype of input .* got (Float|torch.float32)"),
    (dict(offset=(8, 2, 3)), r"offset must be \(R, 2n, part_h, part_w\).* got \[8, 2, 3\]"),
    (dict(offset=(7, 2, 3, 3)), r"offset must be .* for 8 RoIs.* got \[7, 2, 3, 3\]"),
    (dict(offset=(8, 3, 3, 3)), r"offset must be .* got \[8, 3, 3, 3\]"),
    (dict(offset=(8, 6, 3, 3)), r"n divides the 4 output channels; got \[8, 6, 3, 3\]"),
    (dict(offset=(8, 0, 3, 3)), r"offset must be .* got \[8, 0, 3, 3\]"),
    (dict(offset=(8, 2, 0, 3)), r"offset must be .* got \[8, 2, 0, 3\]"),
    (
        dict(offset=torch.float16),
        "offset must have the dtype of input .*, got (Half|torch.float16)",
    ),
    (dict(mask=(8, 3, 3, 3)), r"mask must be \(8, m, 3, 3\).* the 4 .* got \[8, 3, 3, 3\]"),
    (dict(mask=(8, 1, 3, 2)), r"mask must be .* got \[8, 1, 3, 2\]"),
    (dict(mask=torch.int64), "mask must be floating point on .*, got torch.int64"),
    (dict(output_size=(0, 3)), r"output_size must be two numbers from 1 to 32768, got \[0, 3\]"),
    (dict(sampling_ratio=0), "sampling_ratio must be from 1 to .* got 0"),
    (dict(spatial_scale=-0.5), "spatial_scale must be positive, got -0.5"),
]


@pytest.mark.parametrize("device", [*DEVICES, "meta"])  # the last has the fake kernel
@pytest.mark.parametrize("change,message", ERRORS, ids=str)
def test_errors_quote_what_came(device, change, message):
    inputs = make_inputs(device)
    for k, value in change.items():
        if isinstance(value, torch.dtype):
            inputs[k] = inputs[k].detach().to(value)
        elif isinstance(inputs[k], torch.Tensor):
            inputs[k] = torch.zeros(value, dtype=torch.float64, device=device)
        else:
            inputs[k] = value
    with pytest.raises(RuntimeError, match=f"deform_roi_pool: .*{message}"):
        deform_roi_pool(**inputs)


@pytest.mark.parametrize("device", [CUDA])
def test_error_names_devices(device):
    inputs = make_inputs(device)
    for k in ["rois", "offset", "mask"]:
        with pytest.raises(RuntimeError, match="cpu"):
            deform_roi_pool(**{**inputs, k: inputs[k].detach().cpu()})


@pytest.mark.parametrize("device", DEVICES)
def test_input_of_more_than_2_31_elements(device):
    needs_memory(device, 12)
    input = large_zeros(2, 12, 9464, 9464, device=device)
    assert input.numel() > 2**31
    input[-1, -1, -1, -1] = 1
    rois = torch.tensor([[1, 9462.0, 9462, 9464, 9464]], device=device)
    offset = torch.zeros(1, 6, 2, 2, device=device)
    # Samples at the last cell less 1/2, less 1/4, itself, and beyond it.
    expected = torch.zeros(1, 3, 2, 2, device=device)
    expected[0, -1, -1, -1] = ((0.5 + 0.75 + 1 + 1) / 4) ** 2
    assert_close(deform_roi_pool(input, rois, offset, 2, 1.0, group_size=2), expected)


@pytest.mark.parametrize("device", [CUDA])  # half a minute on a CPU
def test_gradient_of_more_than_2_31_elements(device):
    needs_memory(device, 20)
    # The values are not needed here.
    input = torch.zeros(1, 1, 1, 1, device=device).expand(2, 12, 9464, 9464).requires_grad_()
    rois = torch.tensor([[1, 9462.0, 9462, 9464, 9464]], device=device)
    out = deform_roi_pool(input, rois, None, 2, 1.0, sampling_ratio=1, group_size=2)
    (grad,) = torch.autograd.grad(out[0, -1, -1, -1], input)
    # The sample lies between the last two cells of both axes.
    assert grad.count_nonzero() == 4
    assert torch.equal(grad[-1, -1, -2:, -2:], torch.full((2, 2), 0.25, device=device))


def test_module():
    inputs = make_inputs(group_size=(3, 3))
    tensors = [inputs[k] for k in ["input", "rois", "offset", "mask"]]
    layer = DeformROIPool(3, SCALE, sampling_ratio=3, group_size=3)
    assert_close(layer(*tensors), reference.deform_roi_pool(**inputs))
    layer = DeformROIPool((2, 4), SCALE, gamma=0.2, group_size=(1, 3))
    expected = reference.deform_roi_pool(*tensors[:3], (2, 4), SCALE, 4, 0.2, (1, 3))
    assert_close(layer(*tensors[:3]), expected)
    plain = reference.deform_roi_pool(*tensors[:2], None, (2, 4), SCALE, 4, 0.2, (1, 3))
    assert_close(layer(*tensors[:2]), plain)
    assert (
        "output_size=(2, 4), spatial_scale=0.25, sampling_ratio=4, gamma=0.2, group_size=(1, 3)"
        in repr(layer)
    )


def test_compiles_without_a_graph_break():
    inputs = make_inputs(dtype=torch.float32)
    compiled = torch.compile(deform_roi_pool, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**inputs), deform_roi_pool(**inputs))
