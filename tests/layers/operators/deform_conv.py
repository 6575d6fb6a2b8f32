"""What tests call deform_conv with: see the package."""

import math

import torch
import torch.nn.functional as F

from dcn_projects.layers import deform_conv
from tests.layers.fuzzing import (
    NARROW,
    WILD,
    YES_OR_NO,
    check_calls,
    dtypes_and_layouts,
    exact_copies,
    fallback_results,
    finish,
    of_any_size,
    split_head,
)

TENSORS = ["input", "offset", "weight", "mask", "bias"]


def make_inputs(
    device="cpu",
    dtype=torch.float64,
    N=2,
    C=8,
    out_channels=6,
    size=(9, 7),
    kernel=(3, 3),
    stride=1,
    padding=1,
    dilation=1,
    groups=1,
    deformable_groups=1,
    reach=3,
    modulated=True,
    legacy_border=False,
):
    """
    Arguments of deform_conv. Offsets are up to `reach` pixels, so that samples fall inside, outside
    and into the band around the map, and at least 0.1 off the integers, where derivatives jump.
    """
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    K = kernel[0] * kernel[1]
    weight = rand(out_channels, C // groups, *kernel) - 0.5
    out = F.conv2d(
        torch.zeros(N, C, *size), weight.float(), None, stride, padding, dilation, groups
    )
    offset = torch.floor((rand(N, 2 * deformable_groups * K, *out.shape[2:]) * 2 - 1) * reach)
    tensors = {
        "input": rand(N, C, *size) - 0.5,
        "offset": offset + 0.1 + 0.8 * rand(*offset.shape),
        "weight": weight,
        "bias": rand(out_channels),
    }
    if modulated:
        tensors["mask"] = rand(N, deformable_groups * K, *out.shape[2:])
    inputs = {k: t.to(device=device, dtype=dtype).requires_grad_() for k, t in tensors.items()}
    border = {"legacy_border": True} if legacy_border else {}
    return {**inputs, "stride": stride, "padding": padding, "dilation": dilation, **border}


TRANSFORMED = TENSORS
FALLBACK_CASES = [
    dict(N=3, deformable_groups=2),
    dict(N=3, deformable_groups=2, modulated=False, legacy_border=True),
    dict(N=3, deformable_groups=2, dtype=torch.bfloat16),
]
CUDA_CASES = {
    "": dict(C=32, out_channels=8, size=(12, 13), deformable_groups=2),
    "lanes that take one channel": dict(C=9, deformable_groups=3),
}
_SMALL = dict(N=1, C=4, out_channels=2, size=(4, 3))
_KINDS = {
    "modulated": {},
    "plain": dict(modulated=False),
    "kernel 2 x 2": dict(modulated=False, kernel=(2, 2), padding=0),
    "stride 2, 2 groups, 2 deformable": dict(stride=2, groups=2, deformable_groups=2),
    "2 groups, 4 deformable": dict(modulated=False, groups=2, deformable_groups=4),
    "2 groups, 3 deformable": dict(C=6, groups=2, deformable_groups=3, size=(2, 2)),
    "depthwise": dict(groups=4, out_channels=4, N=2, size=(2, 3)),
    "oblong geometry": dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "in the band around the map": dict(size=(2, 2), reach=1),
}
GRADIENT_CASES = {
    f"{kind}{border}": {**_SMALL, **options, "legacy_border": bool(border)}
    for kind, options in _KINDS.items()
    for border in ("", ", border of 2017")
}


def transform_inputs(size):
    return make_inputs(size=size, C=4, deformable_groups=2)


def thread_calls(rand, forward_backward):
    input, offset, mask = rand(2, 72, 21, 19), rand(2, 36, 21, 19), rand(2, 18, 21, 19)
    weight, small, bias = rand(70, 72, 3, 3), rand(70, 36, 3, 3), rand(70)
    return {
        "": forward_backward(
            lambda *t: deform_conv(*t[:4], padding=1, mask=t[4]), input, offset, weight, bias, mask
        ),
        "with groups": forward_backward(
            lambda *t: deform_conv(*t, padding=1), input, offset, small
        ),
    }


def fuzz_case(choose):
    kind = choose(12 * ["any"] + 3 * ["depthwise"] + ["deep"])
    # Deep ones may take the processor's bfloat16 product.
    groups = 1 if kind == "deep" else choose([1, 1, 2, 3, 32])
    deformable_groups = choose([1, 1, 2, 3, 4])
    common = math.lcm(groups, deformable_groups)
    # Most are small, as the large ones take long.
    widths = 5 * [1, 2, 3, 5, 8, 17] + [64, 65, 130, 257, 300]
    widths = [130, 64, 257] if kind == "deep" else widths
    C = common * choose([w for w in widths if w * common <= 320])
    if kind == "depthwise" and C <= 70:
        groups = C
    outs = [130, 64] if kind == "deep" else 4 * [1, 2, 3, 7] + [64, 70, 130]
    outs = choose([n for n in outs if n * groups <= 140])
    largest_kernel = choose([3, 3, 5]) if C < 70 else 3
    largest_out = choose([5, 5, 9, 21]) if C < 20 and outs * groups < 20 else 5
    axes = []
    for _ in range(2):
        kernel = choose(range(1, largest_kernel + 1))
        stride = choose([1, 1, 2, 3, 2**31 - 1])
        padding, dilation = choose([0, 1, 2, 9]), choose([1, 1, 2, 7])
        out = choose(range(1, largest_out + 1))
        # The map may be smaller than the kernel, and than its padding.
        free = (out - 1) * min(stride, 3) + dilation * (kernel - 1) + 1 - 2 * padding
        axes.append((kernel, stride, padding, dilation, max(1, free + choose(range(0, 2 + 1)))))
    kernel, stride, padding, dilation, size = zip(*axes)
    return {
        "N": choose([1, 1, 2, 2, 3, 0]),
        "C": C,
        "out_channels": groups * outs,
        "groups": groups,
        "deformable_groups": deformable_groups,
        "size": size,
        "kernel": kernel,
        "numbers": {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "legacy_border": choose(YES_OR_NO),
        },
        "reach": choose([2, 0, 8]),
        "integers": choose(YES_OR_NO),
        "wild": choose([0, 0.2, 1]),
        "extreme": choose([False, False, False, True]),
        "mask": choose(YES_OR_NO),
        "bias": choose(YES_OR_NO),
        **dtypes_and_layouts(choose, ["input", "offset", "weight", "mask", "bias"]),
    }


def fuzz_tensors(case, device):
    generator = torch.Generator().manual_seed(case["seed"])

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    N, (kh, kw), G = case["N"], case["kernel"], case["deformable_groups"]
    stride, padding, dilation, _ = case["numbers"].values()
    out_size = [
        (case["size"][i] + 2 * padding[i] - dilation[i] * (case["kernel"][i] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    ]
    offset = torch.floor((2 * rand(N, 2 * G * kh * kw, *out_size) - 1) * (case["reach"] + 0.5))
    if not case["integers"]:
        offset += 0.02 + 0.96 * rand(*offset.shape)
        if case["dtype"] in NARROW and "offset" not in case["wide"]:
            offset = torch.floor(offset * 8) / 8 + 1 / 16  # as bfloat16 can hold
    if case["extreme"]:
        offset = torch.where(
            rand(*offset.shape) < 0.5, of_any_size(offset.shape, generator), offset.round()
        )
    wild = rand(*offset.shape) < case["wild"]
    choice = torch.randint(len(WILD), offset.shape, generator=generator)
    tensors = {
        "input": rand(N, case["C"], *case["size"]) - 0.5,
        "offset": torch.where(wild, WILD[choice], offset),
        "weight": rand(case["out_channels"], case["C"] // case["groups"], kh, kw) - 0.5,
    }
    if case["mask"]:
        tensors["mask"] = rand(N, G * kh * kw, *out_size)
    if case["bias"]:
        tensors["bias"] = rand(case["out_channels"])
    tensors["head"] = rand(N, case["out_channels"], *out_size) - 0.5
    return finish(case, tensors, device)


def check(case, device, expected_results):
    tensors = fuzz_tensors(case, device)
    exact_head, exact = split_head(
        exact_copies(tensors, None if case["extreme"] else torch.float64)
    )
    if case["extreme"]:
        expected_results = fallback_results
    expected = expected_results("deform_conv", exact, exact_head, case["numbers"])
    leave_out = []
    if case["integers"] and not case["extreme"] and "offset" in expected:
        leave_out = ["offset"]  # the reference has no one-sided derivative
        del expected["offset"]
    return check_calls(deform_conv, case, tensors, case["numbers"], expected, leave_out)


FUZZ = (fuzz_case, check, 500)
