"""deform_conv on torchvision's kernel."""

import math
from collections.abc import Iterator

import torch
import torchvision  # noqa: F401  defines torch.ops.torchvision.deform_conv2d
from torch import Tensor

from ..checks import check_deform_conv, check_grad
from ..deform_conv import new_map
from ..sampling import tap_grid, tap_positions, taps_inside
from .chunks import chunks, wide

RUNS_ON = "torchvision"


def deform_conv(input, offset, weight, mask, bias, stride, padding, dilation, legacy_border):
    shape = check_deform_conv(input, offset, weight, mask, bias, stride, padding, dilation)
    out = new_map(input, shape)
    geometry = (stride, padding, dilation, legacy_border)
    for part, arguments, _ in _torchvision_calls(input, offset, weight, mask, bias, *geometry):
        out[part] = torch.ops.torchvision.deform_conv2d(*arguments)
    return out


def deform_conv_backward(grad, input, offset, weight, mask, *geometry):
    shape = check_deform_conv(input, offset, weight, mask, None, *geometry[:3])
    check_grad("_deform_conv_backward", grad, input, shape)
    dtype = wide(input.dtype)
    grad_input, grad_offset = new_map(input, input.shape), offset.new_empty(offset.shape)
    grad_weight = weight.new_zeros(weight.shape, dtype=dtype)
    grad_mask = input.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    calls = _torchvision_calls(input, offset, weight, mask, None, *geometry)
    for part, arguments, has_slope in calls:
        grads = torch.ops.torchvision._deform_conv2d_backward(grad[part].to(dtype), *arguments)
        grad_input[part] = grads[0]
        grad_weight += grads[1]
        grad_offset[part] = torch.where(has_slope, grads[2], 0)
        if mask is not None:
            grad_mask[part] = grads[3]
    return grad_input, grad_offset, grad_weight.to(weight.dtype), grad_mask


def _torchvision_calls(
    input, offset, weight, mask, bias, stride, padding, dilation, legacy_border
) -> Iterator[tuple[slice, list, Tensor]]:
    """
    Yields:
        (images, arguments of torchvision.deform_conv2d for them, has_slope of `_tame`), for a few
        images at a time, whose columns fit into memory
    Raises:
        RuntimeError: if one image is too large for torchvision's 32-bit indices
    """
    dtype = wide(input.dtype)
    C, kernel = input.shape[1], weight.shape[2:]
    numbers = [*stride, *padding, *dilation, C // weight.shape[1]]
    numbers += [offset.shape[1] // (2 * math.prod(kernel)), mask is not None]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    weight, bias = weight.to(dtype), bias.to(dtype)
    columns = C * math.prod(kernel) * math.prod(offset.shape[2:])
    largest = max(columns, input[:1].numel())
    if largest >= 2**31:
        raise RuntimeError(
            f"deform_conv: without the compiled operators one image, {list(input.shape[1:])}, and "
            f"the {columns} elements of its columns must be less than 2^31"
        )
    for part in chunks(len(input), largest):
        images = input[part].to(dtype)
        tamed, has_slope = _tame(
            offset[part].to(dtype),
            input.shape[2:],
            kernel,
            stride,
            padding,
            dilation,
            legacy_border,
        )
        factors = images.new_zeros(len(images), 1) if mask is None else mask[part].to(dtype)
        yield part, [images, weight, tamed, factors, bias, *numbers], has_slope


def _tame(offset, size, kernel, stride, padding, dilation, legacy_border) -> tuple[Tensor, Tensor]:
    """
    torchvision's kernel converts any position to an integer, be it NaN or beyond all integers, has
    a slope at position -1, and no legacy border.

    Args:
        offset: (N, 2*G*K, Ho, Wo), float32 or float64
        size: H, W
    Returns:
        offset: samples that do not count are moved to -2, where torchvision reads nothing
        has_slope: of its shape, False where the value does not depend on the offset
    """
    grid = tap_grid(kernel, offset.shape[2:], stride, padding, dilation, offset)
    limit = torch.tensor(size).to(offset).view(2, 1, 1)
    shape, position = offset.shape, tap_positions(offset, kernel, stride, padding, dilation)
    offset = offset.reshape(position.shape)
    counts = taps_inside(position, size, legacy_border).all(4, keepdim=True)
    has_slope = counts.expand_as(offset)
    if legacy_border:
        repeats = position >= limit - 1  # the last row or column
        offset, has_slope = torch.where(repeats, limit - 1 - grid, offset), counts & ~repeats
    return torch.where(counts, offset, -2 - grid).reshape(shape), has_slope.reshape(shape)
