import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from . import library  # noqa: F401  loads the operators

IntPair = int | tuple[int, int]


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
            float64 and float32 for all others. Backward on CUDA adds up in no fixed order
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; on a second derivative; on the CPU
            also if an image index is not one of the batch. On CUDA such a RoI gives 0, as a look at
            the index would stop the host
    """
    size = _pair(output_size)
    group = size if group_size is None else _pair(group_size)
    return torch.ops.dcn_projects.ps_roi_pool(input, rois, size, spatial_scale, group)


@torch.library.register_fake("dcn_projects::ps_roi_pool")
def _(input, rois, output_size, spatial_scale, group_size):
    channels = input.shape[1] // (group_size[0] * group_size[1])
    return input.new_empty(rois.shape[0], channels, *output_size)


@torch.library.register_fake("dcn_projects::_ps_roi_pool_backward")
def _(grad, rois, output_size, spatial_scale, group_size, input_shape):
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


def _second_derivative(ctx, *grads):
    raise RuntimeError("ps_roi_pool has no second derivative")


torch.library.register_autograd("dcn_projects::ps_roi_pool", _backward, setup_context=_save_inputs)
torch.library.register_autograd("dcn_projects::_ps_roi_pool_backward", _second_derivative)


class PSROIPool(nn.Module):
    """`ps_roi_pool` with its numbers fixed."""

    def __init__(
        self, output_size: IntPair, spatial_scale: float, group_size: IntPair | None = None
    ):
        """Arguments of `ps_roi_pool`."""
        super().__init__()
        self.output_size = _pair(output_size)
        self.spatial_scale = spatial_scale
        self.group_size = self.output_size if group_size is None else _pair(group_size)

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
