from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import library  # noqa: F401  loads the operators
from .autocast import autocast_dtype
from .checks import check_deform_conv, check_grad
from .norm_activation import NormAndActivation
from .pair import IntPair, pair
from .self_test import SelfTest, moved
from .transforms import folded, one_by_one, refuse_tangents, register_autograd, register_vmap


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    mask: Tensor | None = None,
    legacy_border: bool = False,
) -> Tensor:
    """
    Deformable convolution (arXiv 1703.06211, Eq. 2); with a mask the modulated one of DCNv2
    (arXiv 1811.11168, Eq. 1). Argument for argument `torchvision.ops.deform_conv2d`.

    Each tap k of the kernel reads the input bilinearly at its regular position plus an offset, and
    the value is multiplied by the mask. The map continues with zeros, so that a value fades over
    the last pixel; a position one pixel outside or further, infinite or NaN, gives 0 and takes no
    gradient. At an integer coordinate the derivative by the offset is the forward difference.

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16, of any memory layout; the
            result is channels-last in memory if `input` is
        offset: (N, 2*G*K, Ho, Wo) for G deformable groups, which divide C, and the
            K = kernel_h * kernel_w taps in row-major order. Channel (g*K + k)*2 is dy, the next dx,
            in pixels of `input`. dtype of `input`, or float32 beside a 16-bit `input`
        weight: (O, C/groups, kernel_h, kernel_w), dtype of `input`
        bias: (O,), dtype of `input`, or None
        stride, padding, dilation: int or (y, x). Unlike `torch.nn.functional.conv2d`, a list of one
            number is refused
        mask: (N, G*K, Ho, Wo), factors of the values read, without activation; dtype as `offset`;
            or None for factors 1. Where one is infinite or NaN, the result is infinite or NaN
        legacy_border: the rule of the operator of 2017 (MXNet's DeformableConvolution): a position
            counts only if 0 <= y < H and 0 <= x < W, and from H - 1 (W - 1) on the last row
            (column) is repeated. Needed for the outputs of weights that were trained so
    Returns:
        Tensor: (N, O, Ho, Wo), dtype of `input`, Ho as in `torch.nn.functional.conv2d`.
            16-bit inputs are summed in float32 and rounded once. Under autocast, input, weight and
            bias are cast to the autocast dtype, offset and mask stay as they are. Backward on CUDA
            adds to the gradient of `input` in no fixed order, except under
            torch.use_deterministic_algorithms(True): slower, with 8 bytes more for each element of
            `input`, and all NaN if a gradient, weight or mask is Inf or NaN
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; on a second or forward-mode
            derivative
    """
    if not torch.jit.is_scripting():
        refuse_tangents("deform_conv", input, offset, weight, mask, bias)
    dtype = autocast_dtype(input)
    if dtype is not None and input.dtype != torch.float64:  # which autocast leaves alone
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        # An earlier layer may have run in the other precision.
        offset = offset if offset.dtype == dtype else offset.float()
        if mask is not None and mask.dtype != dtype:
            mask = mask.float()
    return torch.ops.dcn_projects.deform_conv(
        input,
        offset,
        weight,
        mask,
        bias,
        pair(stride),
        pair(padding),
        pair(dilation),
        legacy_border,
    )


def new_map(input: Tensor, shape) -> Tensor:
    """An empty tensor that is channels-last in memory if `input` is."""
    channels_last = not input.is_contiguous() and input.is_contiguous(
        memory_format=torch.channels_last
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)


@torch.library.register_fake("dcn_projects::deform_conv")
def _(input, offset, weight, mask, bias, stride, padding, dilation, legacy_border):
    shape = check_deform_conv(input, offset, weight, mask, bias, stride, padding, dilation)
    return new_map(input, shape)


@torch.library.register_fake("dcn_projects::_deform_conv_backward")
def _(grad, input, offset, weight, mask, stride, padding, dilation, legacy_border):
    shape = check_deform_conv(input, offset, weight, mask, None, stride, padding, dilation)
    check_grad("_deform_conv_backward", grad, input, shape)
    grad_mask = input.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    return (
        new_map(input, input.shape),
        offset.new_empty(offset.shape),
        weight.new_empty(weight.shape),
        grad_mask,
    )


def _save_inputs(ctx, inputs, output):
    input, offset, weight, mask, bias, *ctx.geometry = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _backward(ctx, grad):
    input, offset, weight, mask = ctx.saved_tensors
    grads = [None] * 9
    if any(ctx.needs_input_grad[:4]):
        grads[:4] = torch.ops.dcn_projects._deform_conv_backward(
            grad, input, offset, weight, mask, *ctx.geometry
        )
        if mask is None:
            grads[3] = None
    if ctx.needs_input_grad[4]:
        grads[4] = grad.sum((0, 2, 3))
    return tuple(grads)


def _fold(size, in_dims, input, offset, weight, mask, bias, *geometry):
    if in_dims[2] is not None or in_dims[4] is not None:
        tensors = (input, offset, weight, mask, bias)
        return one_by_one("deform_conv", size, in_dims, *tensors, *geometry)
    input, offset, mask = (
        folded(t, d, size)
        for t, d in [(input, in_dims[0]), (offset, in_dims[1]), (mask, in_dims[3])]
    )
    out = torch.ops.dcn_projects.deform_conv(input, offset, weight, mask, bias, *geometry)
    return out.unflatten(0, (size, -1))


register_autograd("deform_conv", _backward, _save_inputs)
register_autograd("_deform_conv_backward")
register_vmap("deform_conv", _fold)
# Each example has a gradient of the weight of its own.
register_vmap("_deform_conv_backward", partial(one_by_one, "_deform_conv_backward"))


def check_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: IntPair,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    groups: int,
    deformable_groups: int,
) -> None:
    """
    What the constructors of the modules have in common; the arguments are those of `DeformConv`.

    Raises:
        ValueError: if a number is not positive (padding: negative), if one for each axis are not
            two, or if channels do not divide
    """
    positive = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "deformable_groups": deformable_groups,
    }
    for name, value in (positive | {"padding": padding}).items():
        if len(pair(value)) != 2:
            raise ValueError(f"{name} must be a number or two, got {value}")
    for name, value in positive.items():
        if min(pair(value)) < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if min(pair(padding)) < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    if in_channels % groups or out_channels % groups or in_channels % deformable_groups:
        raise ValueError(
            f"{in_channels} input and {out_channels} output channels do not divide into "
            f"{groups} groups and {deformable_groups} deformable groups"
        )


class DeformConv(NormAndActivation, nn.Module):
    """
    Deformable convolution (DCNv1) whose offsets come from outside, with the arguments and parameter
    names of `detectron2.layers.DeformConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        *,
        legacy_border: bool = False,
    ):
        """
        Args:
            in_channels, out_channels: multiples of `groups`; the former of `deformable_groups` too
            deformable_groups: number of channel groups with offsets of their own
            norm, activation: applied to the result, in this order
            legacy_border: see `deform_conv`
        Raises:
            ValueError: if a number is not positive (padding: negative), or channels do not divide
        """
        super().__init__()
        check_convolution(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(kernel_size)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.legacy_border = legacy_border

        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W)
            offset: (N, 2 * deformable_groups * kernel_h * kernel_w, Ho, Wo), see `deform_conv`
        Returns:
            Tensor: (N, out_channels, Ho, Wo)
        """
        return self._convolve(x, offset, None)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        x = deform_conv(
            x,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            self.legacy_border,
        )
        return self._norm_and_activate(x)

    def extra_repr(self) -> str:
        text = (
            f"in_channels={self.in_channels}, out_channels={self.out_channels}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}, "
            f"deformable_groups={self.deformable_groups}, bias={self.bias is not None}"
        )
        return text + (", legacy_border=True" if self.legacy_border else "")


class ModulatedDeformConv(DeformConv):
    """
    Modulated deformable convolution (DCNv2) whose offsets and masks come from outside, with the
    arguments and parameter names of `detectron2.layers.ModulatedDeformConv`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        *,
        legacy_border: bool = False,
    ):
        """Arguments of `DeformConv`; the bias is on by default, as in detectron2."""
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            bias,
            norm,
            activation,
            legacy_border=legacy_border,
        )

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x, offset: as for `DeformConv`
            mask: (N, deformable_groups * kernel_h * kernel_w, Ho, Wo), after its activation
        Returns:
            Tensor: (N, out_channels, Ho, Wo)
        """
        return self._convolve(x, offset, mask)


def _moved_by_offsets(x, move, weight):
    offset = move.view(1, 2, 1, 1).repeat(len(x), weight.shape[2] * weight.shape[3], *x.shape[2:])
    return deform_conv(x, offset, weight, padding=1)


def _moved_first(x, move, weight):
    return F.conv2d(moved(F.pad(x, (1, 1, 1, 1)), move), weight)


SELF_TEST = SelfTest(_moved_by_offsets, _moved_first)
