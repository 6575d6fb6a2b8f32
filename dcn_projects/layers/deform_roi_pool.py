import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import library  # noqa: F401  loads the operators
from .autocast import autocast_dtype
from .checks import check_deform_roi_pool, check_grad
from .pair import IntPair, pair
from .self_test import SelfTest, moved
from .transforms import folded, folded_rois, refuse_tangents, register_autograd, register_vmap


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: IntPair,
    spatial_scale: float,
    sampling_ratio: int = 4,
    gamma: float = 0.1,
    group_size: IntPair = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """
    Deformable RoI pooling (arXiv 1703.06211, Eq. 5-6), position-sensitive with `group_size` > 1;
    with a mask the modulated one of DCNv2 (arXiv 1811.11168, Eq. 2).

    The corners of a RoI are rounded to integers, halves away from zero, scaled, and moved by half a
    cell up and left; the region is at least 0.1 cells long and cut into equal bins. A bin is the
    mean of sampling_ratio^2 bilinear samples, at the top left corners of its sub-bins, which the
    offset of the bin moves. It reads input channel (d * group_h + gi) * group_w + gj for output
    channel d, where (gi, gj) is the cell of the group that the bin falls into. A sample more than
    half a cell outside the cell centres does not count, the others are clamped to them; a bin
    without samples is 0.

    The derivative by the offset takes the number of samples that count as constant. It is 0 for a
    sample at a whole coordinate or clamped to the border, along that axis. RoIs get no gradient.

    Args:
        input: (N, D * group_h * group_w, H, W), float64, float32, float16 or bfloat16, any memory
            layout
        rois: (R, 5), image index, x0, y0, x1, y1 in input pixels, far corners exclusive (thus
            x1 = x2 + 1 for boxes with inclusive corners x2). dtype of `input`, or float32 beside a
            16-bit `input`, which cannot hold large coordinates. A RoI with a corner that is not
            finite gives 0; one whose corners are reversed is 0.1 cells long
        offset: (R, 2*n, part_h, part_w) for n classes, which divide D: D/n consecutive output
            channels share a class. Plane 2k is x of class k, plane 2k + 1 its y, in units of
            `gamma` times the size of the RoI. Bin (i, j) has the offset of part
            (i * part_h // height, j * part_w // width). dtype as `rois`. Infinite, huge and NaN
            offsets move the samples outside. None moves nothing
        output_size: int or (height, width), number of bins
        spatial_scale: cells of the map per input pixel
        sampling_ratio: samples along each side of a bin  # sample_per_part in MXNet
        gamma: scale of the offsets  # trans_std in MXNet
        group_size: int or (height, width), k of R-FCN; 1 to pool every channel in all bins
        mask: (R, m, height, width), factors of the result, where m divides D: D/m consecutive
            output channels share a plane; any floating dtype; or None
    Returns:
        Tensor: (R, D, height, width), dtype of `input`. Coordinates and sums are float64 for
            float64 and float32 for all others. Backward on CUDA adds to the gradient of `input` in
            no fixed order, except under torch.use_deterministic_algorithms(True): slower, with 8
            bytes more for each element of `input`, and all NaN if a gradient is Inf or NaN
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit; on a second or forward-mode
            derivative; on the CPU also if an image index is not one of the batch. On CUDA such a
            RoI gives 0, as a look at the index would stop the host
    """
    if not torch.jit.is_scripting():
        refuse_tangents("deform_roi_pool", input, rois, offset)
    if offset is not None and offset.dtype != input.dtype and autocast_dtype(input) is not None:
        # The layer that predicts the offsets may have run in the other precision.
        offset = offset.float()
    pooled = torch.ops.dcn_projects.deform_roi_pool(
        input,
        rois,
        offset,
        pair(output_size),
        spatial_scale,
        sampling_ratio,
        gamma,
        pair(group_size),
    )
    return pooled if mask is None else _modulate(pooled, mask)


def _modulate(pooled: Tensor, mask: Tensor) -> Tensor:
    R, D, height, width = pooled.shape
    fits = mask.dim() == 4 and mask.shape[0] == R and mask.shape[2:] == pooled.shape[2:]
    if not fits or mask.shape[1] == 0 or D % mask.shape[1] != 0:
        raise RuntimeError(
            f"deform_roi_pool: mask must be ({R}, m, {height}, {width}), where m divides the "
            f"{D} output channels; got {list(mask.shape)}"
        )
    if not mask.is_floating_point() or mask.device != pooled.device:
        raise RuntimeError(
            f"deform_roi_pool: mask must be floating point on {pooled.device}, "
            f"got {mask.dtype} on {mask.device}"
        )
    m = mask.shape[1]
    product = pooled.view(R, m, D // m, height, width) * mask[:, :, None]
    return product.view(R, D, height, width).to(pooled.dtype)


@torch.library.register_fake("dcn_projects::deform_roi_pool")
def _(input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size):
    geometry = (output_size, spatial_scale, sampling_ratio, group_size)
    return input.new_empty(check_deform_roi_pool("deform_roi_pool", input, rois, offset, *geometry))


@torch.library.register_fake("dcn_projects::_deform_roi_pool_backward")
def _(grad, input, rois, offset, output_size, spatial_scale, sampling_ratio, gamma, group_size):
    op = "deform_roi_pool"
    geometry = (output_size, spatial_scale, sampling_ratio, group_size)
    check_grad(op, grad, input, check_deform_roi_pool(op, input, rois, offset, *geometry))
    grad_offset = input.new_empty(0) if offset is None else offset.new_empty(offset.shape)
    return input.new_empty(input.shape), grad_offset


def _save_inputs(ctx, inputs, output):
    input, rois, offset, *ctx.geometry = inputs
    ctx.save_for_backward(input, rois, offset)


def _backward(ctx, grad):
    input, rois, offset = ctx.saved_tensors
    grad_input, grad_offset = torch.ops.dcn_projects._deform_roi_pool_backward(
        grad, input, rois, offset, *ctx.geometry
    )
    return grad_input, None, None if offset is None else grad_offset, *[None] * len(ctx.geometry)


def _fold_inputs(size, in_dims, input, rois, offset):
    input, offset = folded(input, in_dims[0], size), folded(offset, in_dims[2], size)
    return input, folded_rois(rois, in_dims[1], size, input.shape[0] // size), offset


def _fold(size, in_dims, input, rois, offset, *geometry):
    tensors = _fold_inputs(size, in_dims, input, rois, offset)
    out = torch.ops.dcn_projects.deform_roi_pool(*tensors, *geometry)
    return out.unflatten(0, (size, -1))


def _fold_backward(size, in_dims, grad, input, rois, offset, *geometry):
    grad = folded(grad, in_dims[0], size)
    tensors = _fold_inputs(size, in_dims[1:], input, rois, offset)
    grad_input, grad_offset = torch.ops.dcn_projects._deform_roi_pool_backward(
        grad, *tensors, *geometry
    )
    return grad_input.unflatten(0, (size, -1)), grad_offset.unflatten(0, (size, -1))


register_autograd("deform_roi_pool", _backward, _save_inputs)
register_autograd("_deform_roi_pool_backward")
register_vmap("deform_roi_pool", _fold)
register_vmap("_deform_roi_pool_backward", _fold_backward)


class DeformROIPool(nn.Module):
    """`deform_roi_pool` with its numbers fixed."""

    def __init__(
        self,
        output_size: IntPair,
        spatial_scale: float,
        sampling_ratio: int = 4,
        gamma: float = 0.1,
        group_size: IntPair = 1,
    ):
        """Arguments of `deform_roi_pool`."""
        super().__init__()
        self.output_size = pair(output_size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.gamma = gamma
        self.group_size = pair(group_size)

    def forward(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            input: (N, D * group_h * group_w, H, W)
            rois: (R, 5), image index, x0, y0, x1, y1 in input pixels
            offset: (R, 2*n, part_h, part_w), see `deform_roi_pool`
            mask: (R, m, height, width), see `deform_roi_pool`
        Returns:
            Tensor: (R, D, height, width)
        """
        return deform_roi_pool(
            input,
            rois,
            offset,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.gamma,
            self.group_size,
            mask,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}, "
            f"group_size={self.group_size}"
        )


def _moved_by_offsets(x, move, weight):
    # Samples begin at 3.5; gamma times the size of the RoI is 0.8.
    offset = ((move + 0.5) / 0.8).flip(0).view(1, 2, 1, 1)
    return deform_roi_pool(x, x.new_tensor([[0.0, 4, 4, 12, 12]]), offset, 2, 1.0)


def _means_of_moved(x, move, weight):
    return F.avg_pool2d(moved(x, move)[:1, :, 4:12, 4:12], 4)


SELF_TEST = SelfTest(_moved_by_offsets, _means_of_moved)
