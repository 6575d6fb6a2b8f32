"""Shapes, goals and candidates of bm_deform_conv.py: what its tables measure."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import measure
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from dcn_projects.layers import deform_conv


class Case(NamedTuple):
    """(N, C, H, W) -> O; `model` says whether it is there to meet the model of the odd shapes."""

    name: str
    N: int
    C: int
    H: int
    W: int
    O: int  # noqa: E741
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    deformable_groups: int = 1
    odd: bool = False

    @property
    def geometry(self) -> dict[str, int]:
        padding = self.kernel // 2 * self.dilation
        return dict(stride=self.stride, padding=padding, dilation=self.dilation)

    @property
    def size(self) -> tuple[int, int]:
        """(Ho, Wo): the padding keeps the size but for the stride."""
        return (self.H - 1) // self.stride + 1, (self.W - 1) // self.stride + 1

    def __str__(self):
        return f"{self.name} ({self.N}, {self.C}, {self.H}, {self.W}) -> {self.O}"


CASES = [
    Case("a", 1, 512, 38, 50, 512),
    Case("a2 dilated", 1, 512, 50, 84, 512, dilation=2),
    Case("b", 1, 128, 100, 152, 128),
    Case("c", 2, 256, 50, 76, 256),
    Case("c G=4", 2, 256, 50, 76, 256, deformable_groups=4),
    Case("d", 1, 256, 200, 304, 256),
    Case("e", 1, 512, 25, 42, 512),
    Case("f64", 1, 64, 100, 152, 64),
    Case("f32", 1, 32, 100, 152, 32),
    Case("g", 1, 256, 7, 11, 256),
    Case("h groups=32", 2, 256, 50, 76, 256, groups=32),
    Case("i stride 2", 2, 256, 50, 76, 256, stride=2, odd=True),
    Case("i kernel 1", 2, 256, 50, 76, 256, kernel=1, odd=True),
    Case("i kernel 5", 1, 128, 50, 76, 128, kernel=5, odd=True),
    Case("i C=20", 1, 20, 100, 152, 7, odd=True),
]
BY_NAME = {case.name: case for case in CASES}

# ResNet-101 at 800 x 1333
RESNET = [
    Case("conv3", 1, 128, 100, 167, 128),
    Case("conv4", 1, 256, 50, 84, 256),
    Case("conv5", 1, 512, 25, 42, 512),
    Case("conv5 dilated", 1, 512, 50, 84, 512, dilation=2),
]

PASSES = ["forward", "backward", "both"]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}
MB = 1e6

# (must, goal) by pass
DENSE_CPU = dict(forward=(1.45, 1.25), backward=(1.5, 1.25), both=(1.5, 1.25))
TORCHVISION_CPU = dict(forward=(2, 4), backward=(None, None), both=(5, 10))
DENSE_CUDA = {
    4: dict(forward=(1.6, 1.35), backward=(2.2, 1.7), both=(None, None)),
    2: dict(forward=(4, 3), backward=(8, 5), both=(None, None)),
}
TORCHVISION_CUDA = {
    4: dict(forward=(1.4, 2), backward=(1.7, 2.5), both=(None, None)),
    2: dict(forward=(5, 8), backward=(4, 7), both=(None, None)),
}


def dense_goals(case: Case, part: str, device: str, dtype: torch.dtype):
    if device == "cuda":
        known = case.groups == 1 and not case.odd
        return DENSE_CUDA[dtype.itemsize][part] if known else (None, None)
    if dtype != torch.float32:
        return None, None
    if case.groups > 1:
        return 5, 3
    if case.odd:
        # Gather and sweep take 10 and 26 cycles for K*C/16 values, the products K*C*O/32; within 4.
        forward, backward = 1.1 + 2 * 10 / case.O, 1.1 + 26 / case.O
        model = dict(forward=forward, backward=backward, both=(forward + 2 * backward) / 3)
        return 4 * model[part], None
    if min(case.C, case.O) >= 128:
        return DENSE_CPU[part]
    return {64: (2, 1.5), 32: (3, 2.2)}[case.C] if part == "both" else (None, None)


def torchvision_goals(part: str, device: str, dtype: torch.dtype):
    if device == "cuda":
        return TORCHVISION_CUDA[dtype.itemsize][part]
    return TORCHVISION_CPU[part] if dtype == torch.float32 else (None, None)


# Candidates


class Inputs(NamedTuple):
    x: Tensor
    offset: Tensor
    mask: Tensor | None
    weight: Tensor


def make_inputs(
    case: Case, device: str, dtype: torch.dtype, sigma=2.0, layout="NCHW", modulated=True
) -> Inputs:
    channels = case.deformable_groups * case.kernel**2
    x = torch.randn(case.N, case.C, case.H, case.W, device=device, dtype=dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    offset = sigma * torch.randn(case.N, 2 * channels, *case.size, device=device)
    mask = torch.rand(case.N, channels, *case.size, device=device) if modulated else None
    shape = (case.O, case.C // case.groups, case.kernel, case.kernel)
    weight = torch.randn(shape, device=device, dtype=dtype)
    tensors = [x, offset.to(dtype), None if mask is None else mask.to(dtype), weight]
    return Inputs(*(t if t is None else t.requires_grad_() for t in tensors))


def ours(case: Case, inputs: Inputs) -> Tensor:
    x, offset, mask, weight = inputs
    return deform_conv(x, offset, weight, mask=mask, **case.geometry)


def theirs(case: Case, inputs: Inputs) -> Tensor:
    # In float32, as its autocast does it too: it has no bfloat16.
    x, offset, mask, weight = (t if t is None else t.float() for t in inputs)
    out = torchvision.ops.deform_conv2d(x, offset, weight, mask=mask, **case.geometry)
    return out.to(inputs.x.dtype)


def dense(case: Case, inputs: Inputs) -> Tensor:
    return F.conv2d(inputs.x, inputs.weight, groups=case.groups, **case.geometry)


def forward_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    return torch.no_grad()(lambda: op(case, inputs))


def backward_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    """The backward pass alone, on a kept graph."""
    out = op(case, inputs)
    grad = torch.randn_like(out)
    wanted = [inputs.x, inputs.weight] if op is dense else [t for t in inputs if t is not None]
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def both_call(op: Callable, case: Case, inputs: Inputs) -> measure.Call:
    """A new graph each time, to be captured."""
    grad = torch.randn_like(op(case, inputs))
    wanted = [inputs.x, inputs.weight] if op is dense else [t for t in inputs if t is not None]
    return lambda: torch.autograd.grad(op(case, inputs), wanted, grad)


def calls(name: str, op: Callable, case: Case, sets: Sequence[Inputs]) -> dict[str, measure.Call]:
    return {
        f"{name} forward": measure.rotate([forward_call(op, case, i) for i in sets]),
        f"{name} backward": measure.rotate([backward_call(op, case, i) for i in sets]),
    }


def product_calls(case: Case, device: str, dtype: torch.dtype) -> dict[str, measure.Call]:
    """
    The matrix products of a convolution, O x KC x NP. cuDNN may choose Winograd's algorithm, which
    no deformable operator can use.
    """
    pixels, inner = case.N * case.size[0] * case.size[1], case.kernel**2 * case.C
    weight = torch.randn(case.O, inner, device=device, dtype=dtype)
    column = torch.randn(inner, pixels, device=device, dtype=dtype)
    grad = torch.randn(case.O, pixels, device=device, dtype=dtype)
    return {
        "product forward": lambda: weight @ column,
        "product backward": lambda: (weight.T @ grad, grad @ column.T),
    }


def input_sets(case: Case, args: argparse.Namespace, dtype: torch.dtype, **options):
    first = make_inputs(case, args.device, dtype, **options)
    more = measure.copies(measure.nbytes(first), args) - 1
    return [first, *(make_inputs(case, args.device, dtype, **options) for _ in range(more))]


def measured(case: Case, args: argparse.Namespace, dtype: torch.dtype):
    """
    Returns:
        dict: seconds per round of ours, torchvision and dense, each for all PASSES. On CUDA dense
            is the faster of the two layouts and, in float32, not faster than the products
    """
    sets = input_sets(case, args, dtype)
    candidates = {
        **calls("dense", dense, case, sets),
        **calls("ours", ours, case, sets),
        **calls("torchvision", theirs, case, sets),
    }
    if args.device == "cuda":
        last = [i._replace(x=_channels_last(i.x), weight=_channels_last(i.weight)) for i in sets]
        candidates |= calls("channels-last", dense, case, last)
        if dtype == torch.float32 and case.groups == 1:
            candidates |= product_calls(case, args.device, dtype)
    times = measure.rounds(candidates, args, slow=[n for n in candidates if "torchvision" in n])
    for part in PASSES[:2]:
        if f"channels-last {part}" in times:
            options = [times[f"{name} {part}"] for name in ["dense", "channels-last"]]
            times[f"dense {part}"] = min(options, key=statistics.median)
        if f"product {part}" in times:
            options = [times[f"{name} {part}"] for name in ["dense", "product"]]
            times[f"dense {part}"] = max(options, key=statistics.median)
    for name in ["ours", "dense", "torchvision"]:
        parts = [times[f"{name} {part}"] for part in PASSES[:2]]
        times[f"{name} both"] = measure.total(*parts)
    return times


def _channels_last(t: Tensor) -> Tensor:
    return t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
