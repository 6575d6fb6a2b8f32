import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import library  # noqa: F401  loads the operators
from .checks import check_grad, check_roi_pool
from .pair import IntPair, pair
from .self_test import SelfTest
from .transforms import folded, folded_rois, refuse_tangents, register_autograd, register_vmap


def ps_roi_pool(
    input: Tensor,
    rois: Tensor,
    output_size: IntPair,
    spatial_scale: float,
    group_size: IntPair | None = None,
) -> Tensor:
    """
    Position-sensitive RoI pooling of R-FCN (arXiv 1605.06409, Eq. 1), with the roundings of its
    published operator.

    The corners of a RoI are rounded to integers, halves away from zero, and then scaled; the region
    is at least 0.1 cells long and cut into equal bins. A bin of output channel d is the plain mean
    of all cells that it touches in input channel (d * group_h + gi) * group_w + gj, where (gi, gj)
    is the cell of the group that the bin falls into. Cells outside the map do not count, and a bin
    without cells is 0. RoIs get no gradient.

    Args:
        input: (N, D * group_h * group_w, H, W), float64, float32, float16 or bfloat16, any memory
            layout
        rois: (R, 5), image index, x0, y0, x1, y1 in input pixels, far corners exclusive (thus
            x1 = x2 + 1 for boxes with inclusive corners x2). dtype of `input`, or float32 beside a
            16-bit `input`, which cannot hold large coordinates. A RoI with a corner that is not
            finite gives 0; one whose corners are reversed is 0.1 cells long
        output_size: int or (height, width), number of bins
        spatial_scale: cells of the map per input pixel
        group_size: int or (height, width), k of the paper; None for `output_size`
    Returns:
        Tensor: (R, D, height, width), dtype of `input`. Coordinates and sums are float64 for
            float64 and float32 for all others. Backward on CUDA adds up in no fixed order, except
            under torch.use_deterministic_algorithms(True): slower, with 8 bytes more for each
            element of `input`, and all NaN if a gradient is Inf or NaN
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; on a second or forward-mode
            derivative; on the CPU also if an image index is not one of the batch. On CUDA such a
            RoI gives 0, as a look at the index would stop the host
    """
    if not torch.jit.is_scripting():
        refuse_tangents("ps_roi_pool", input, rois)
    size = pair(output_size)
    group = size if group_size is None else pair(group_size)
    return torch.ops.dcn_projects.ps_roi_pool(input, rois, size, spatial_scale, group)


@torch.library.register_fake("dcn_projects::ps_roi_pool")
def _(input, rois, output_size, spatial_scale, group_size):
    geometry = (output_size, spatial_scale, group_size)
    return input.new_empty(check_roi_pool("ps_roi_pool", input.shape, input, rois, *geometry))


@torch.library.register_fake("dcn_projects::_ps_roi_pool_backward")
def _(grad, rois, output_size, spatial_scale, group_size, input_shape):
    geometry = (output_size, spatial_scale, group_size)
    shape = check_roi_pool("ps_roi_pool", input_shape, grad, rois, *geometry)
    check_grad("ps_roi_pool", grad, grad, shape)
    return grad.new_empty(input_shape)


def _save_inputs(ctx, inputs, output):
    input, rois, *ctx.geometry = inputs
    ctx.input_shape = input.shape
    ctx.save_for_backward(rois)


def _backward(ctx, grad):
    (rois,) = ctx.saved_tensors
    grad_input = torch.ops.dcn_projects._ps_roi_pool_backward(
        grad, rois, *ctx.geometry, ctx.input_shape
    )
    return grad_input, None, None, None, None


def _fold(size, in_dims, input, rois, *geometry):
    input = folded(input, in_dims[0], size)
    rois = folded_rois(rois, in_dims[1], size, input.shape[0] // size)
    out = torch.ops.dcn_projects.ps_roi_pool(input, rois, *geometry)
    return out.unflatten(0, (size, -1))


def _fold_backward(size, in_dims, grad, rois, *geometry):
    *geometry, (images, *shape) = geometry
    grad, rois = folded(grad, in_dims[0], size), folded_rois(rois, in_dims[1], size, images)
    grad_input = torch.ops.dcn_projects._ps_roi_pool_backward(
        grad, rois, *geometry, [size * images, *shape]
    )
    return grad_input.unflatten(0, (size, images))


register_autograd("ps_roi_pool", _backward, _save_inputs)
register_autograd("_ps_roi_pool_backward")
register_vmap("ps_roi_pool", _fold)
register_vmap("_ps_roi_pool_backward", _fold_backward)


class PSROIPool(nn.Module):
    """`ps_roi_pool` with its numbers fixed."""

    def __init__(
        self, output_size: IntPair, spatial_scale: float, group_size: IntPair | None = None
    ):
        """Arguments of `ps_roi_pool`."""
        super().__init__()
        self.output_size = pair(output_size)
        self.spatial_scale = spatial_scale
        self.group_size = self.output_size if group_size is None else pair(group_size)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: (N, D * group_h * group_w, H, W)
            rois: (R, 5), image index, x0, y0, x1, y1 in input pixels
        Returns:
            Tensor: (R, D, height, width)
        """
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale, self.group_size)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"group_size={self.group_size}"
        )


def _pooled(x, move, weight):
    return ps_roi_pool(x, x.new_tensor([[0.0, 4, 4, 12, 12]]), 2, 1.0)


def _means(x, move, weight):
    means = F.avg_pool2d(x[:1, :, 4:12, 4:12], 4).unflatten(1, (-1, 2, 2))
    return torch.einsum("ndijij->ndij", means)


SELF_TEST = SelfTest(_pooled, _means)
