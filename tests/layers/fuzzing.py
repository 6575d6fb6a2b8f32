"""
What the fuzz test calls the operators with: hypothesis draws a dict of plain numbers, a case, which
is what a failure prints. FUZZ in operators/<op>.py is a strategy for cases, a check of one that
fills tensors from its seed and compares with the reference, and how many cases a short run has.

Derivatives and the borders of what counts are discontinuous. So that float32 and the reference in
float64 fall on the same side, deformable convolution gets offsets away from integers (or its
gradient of the offsets is not compared), and the RoI operators positions that are sums of few
powers of two, which every dtype holds.
"""

import math

import torch
from hypothesis import strategies as st
from torch.testing import assert_close

WIDE, NARROW = [torch.float64, torch.float32], [torch.float16, torch.bfloat16]
LAYOUTS = [
    "contiguous",
    "channels_last",
    "sliced",
    "transposed",
    "unaligned",
    "expanded",
    "overlapping",
]
WILD = torch.tensor([math.nan, math.inf, -math.inf, 1e20, -1e20, 2.0**31], dtype=torch.float64)
seeds = st.integers(0, 2**32 - 1)


def lay_out(tensor, layout):
    """The tensor in another memory layout; the last two also repeat some of its values."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "unaligned":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand_as(tensor)
    if layout == "overlapping" and tensor.numel():
        return tensor.contiguous().as_strided(tensor.shape, [1] * tensor.dim())
    return tensor.contiguous()


@st.composite
def dtypes_and_layouts(draw, names, layouts=LAYOUTS):
    """`wide`: which of offset, mask and rois are float32 beside a 16-bit input."""
    return {
        "dtype": draw(st.sampled_from(WIDE + NARROW)),
        "wide": draw(st.sets(st.sampled_from(["offset", "mask", "rois"]))),
        "layouts": {name: draw(st.sampled_from(layouts)) for name in [*names, "rois", "head"]},
        "requires_grad": draw(st.just(names) | st.lists(st.sampled_from(names), unique=True)),
        "threads": draw(st.sampled_from([1, 3])),
        "seed": draw(seeds),
    }


def dtype_of(case, name):
    is_wide = case["dtype"] in NARROW and name in case["wide"]
    return torch.float32 if is_wide else case["dtype"]


def finish(case, tensors, device):
    """Tensors of the case's dtypes and layouts."""
    result = {}
    for name, tensor in tensors.items():
        dtype = dtype_of(case, name)
        tensor = lay_out(tensor.to(device, dtype), case["layouts"].get(name, "contiguous"))
        result[name] = tensor.requires_grad_(name in case["requires_grad"])
    return result


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
