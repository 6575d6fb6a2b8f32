from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import roi_pool

from dcn_projects.layers import DeformROIPool
from dcn_projects.layers.pair import IntPair, pair

from .modulated_pooler import ModulatedDeformROIPooler

__all__ = [
    "DeformROIPooler",
    "MaxROIPooler",
    "OffsetROIPool",
    "build_roi_pooler",
]


class MaxROIPool(nn.Module):
    """
    RoI pooling of Fast R-CNN (arXiv 1504.08083, Sec. 2.1) with the rounding of its original: the
    first and the last pixel of a RoI are scaled and rounded to cells, halves away from zero, and
    both cells belong to the RoI. A bin is the maximum of its cells, 0 if it has none.
    """

    def __init__(self, output_size: IntPair, spatial_scale: float):
        """
        Args:
            output_size: int or (height, width), number of bins
            spatial_scale: cells of the map per input pixel
        """
        super().__init__()
        self.output_size = pair(output_size)
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: (N, C, H, W)
            rois: (R, 5), image index, x0, y0, x1, y1 in input pixels, far corners exclusive
        Returns:
            Tensor: (R, C, height, width), dtype of `input`
        """
        # torchvision's operator takes the last pixel itself; it needs one dtype, and 16 bits
        # cannot hold large coordinates. A maximum is the same in float32.
        dtype = torch.promote_types(input.dtype, rois.dtype)
        rois = rois.to(dtype) - rois.new_tensor([0, 0, 0, 1, 1])
        pooled = roi_pool(input.to(dtype), rois, self.output_size, self.spatial_scale)
        return pooled.to(input.dtype)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class OffsetROIPool(nn.Module):
    """
    Deformable RoI pooling with the layer that predicts its offsets (arXiv 1703.06211, Sec. 2.2 and
    Fig. 3): a fully connected layer reads what is pooled without offsets, and the same RoIs are
    pooled again with an offset for each bin. The layer starts at zero, so that both are equal.
    """

    def __init__(
        self,
        output_size: IntPair,
        spatial_scale: float,
        in_channels: int,
        sampling_ratio: int = 4,
        gamma: float = 0.1,
    ):
        """
        Args:
            output_size: int or (height, width), number of bins
            spatial_scale: cells of the map per input pixel
            in_channels: C
            sampling_ratio: samples along each side of a bin
            gamma: fraction of the size of the RoI that an offset of 1 stands for
        """
        super().__init__()
        self.pool = DeformROIPool(output_size, spatial_scale, sampling_ratio, gamma)
        height, width = self.pool.output_size
        self.offset_fc = nn.Linear(in_channels * height * width, 2 * height * width)
        nn.init.zeros_(self.offset_fc.weight)
        nn.init.zeros_(self.offset_fc.bias)

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: (N, C, H, W)
            rois: (R, 5), image index, x0, y0, x1, y1 in input pixels
        Returns:
            Tensor: (R, C, height, width), dtype of `input`
        """
        rois = rois.to(torch.promote_types(input.dtype, rois.dtype))
        offset = self.offset_fc(self.pool(input, rois).flatten(1))
        offset = offset.view(-1, 2, *self.pool.output_size)  # a plane of x, a plane of y
        return self.pool(input, rois, offset)


class MaxROIPooler(ROIPooler):
    """
    detectron2's pooler of type "ROIPool" with the rounding of the original: RoIs end at their last
    pixel. It pools from one feature map, or from the level of a pyramid that fits a RoI's size.
    """

    def __init__(
        self,
        output_size: IntPair,
        scales: Sequence[float],
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """Arguments of detectron2's ROIPooler."""
        canonical = dict(canonical_box_size=canonical_box_size, canonical_level=canonical_level)
        super().__init__(output_size, scales, 0, "ROIPool", **canonical)
        self.level_poolers = nn.ModuleList(MaxROIPool(output_size, scale) for scale in scales)


class DeformROIPooler(ROIPooler):
    """
    detectron2's pooler with deformable RoI pooling (arXiv 1703.06211, Sec. 2.2). It pools from one
    feature map, or from the level of a pyramid that fits a RoI's size; each level has an offset
    layer of its own, `level_poolers.<i>.offset_fc`. In the original these layers learn at 0.01 of
    the rate of the others: use SOLVER.LR_FACTORS.
    """

    def __init__(
        self,
        output_size: IntPair,
        scales: Sequence[float],
        in_channels: int,
        sampling_ratio: int = 4,
        gamma: float = 0.1,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            in_channels: channels of each feature map
            sampling_ratio: samples along each side of a bin
            gamma: fraction of the size of the RoI that an offset of 1 stands for
            others: as in detectron2's ROIPooler
        """
        canonical = dict(canonical_box_size=canonical_box_size, canonical_level=canonical_level)
        super().__init__(output_size, scales, 0, "ROIPool", **canonical)
        self.level_poolers = nn.ModuleList(
            OffsetROIPool(output_size, scale, in_channels, sampling_ratio, gamma)
            for scale in scales
        )


def build_roi_pooler(cfg: CfgNode, head: str, shapes: Sequence[ShapeSpec]) -> ROIPooler:
    """
    The pooler that POOLER_TYPE of a head names: "ROIPool" (maximum), "DeformROIPool",
    "ModulatedDeformROIPool", or detectron2's "ROIAlign" and "ROIAlignV2".

    Args:
        head: "ROI_BOX_HEAD" or "ROI_MASK_HEAD", the node of cfg.MODEL that is read
        shapes: of the feature maps, finest first, with equal channels
    Raises:
        ValueError: for another type, or numbers with which it cannot pool
    """
    keys = cfg.MODEL[head]
    if keys.POOLER_RESOLUTION < 1:
        raise ValueError(
            f"MODEL.{head}.POOLER_RESOLUTION is {keys.POOLER_RESOLUTION}, expected 1 or more"
        )
    size = dict(output_size=keys.POOLER_RESOLUTION, scales=[1.0 / s.stride for s in shapes])
    if keys.POOLER_TYPE == "ROIPool":
        return MaxROIPooler(**size)
    if keys.POOLER_TYPE in ("ROIAlign", "ROIAlignV2"):
        align = dict(sampling_ratio=keys.POOLER_SAMPLING_RATIO, pooler_type=keys.POOLER_TYPE)
        return ROIPooler(**size, **align)
    if keys.POOLER_TYPE not in ("DeformROIPool", "ModulatedDeformROIPool"):
        raise ValueError(
            f"MODEL.{head}.POOLER_TYPE is {keys.POOLER_TYPE}, expected ROIPool, ROIAlign, "
            "ROIAlignV2, DeformROIPool or ModulatedDeformROIPool"
        )
    if keys.POOLER_SAMPLING_RATIO < 1:
        raise ValueError(
            f"MODEL.{head}.POOLER_SAMPLING_RATIO is {keys.POOLER_SAMPLING_RATIO}: "
            f"{keys.POOLER_TYPE} needs 1 or more samples per side of a bin (4 in the original of "
            "DeformROIPool, 2 in that of ModulatedDeformROIPool)"
        )
    deform = dict(
        in_channels=shapes[0].channels,
        sampling_ratio=keys.POOLER_SAMPLING_RATIO,
        gamma=keys.POOLER_GAMMA,
    )
    if keys.POOLER_TYPE == "DeformROIPool":
        return DeformROIPooler(**size, **deform)
    if keys.POOLER_FC_DIM < 1:
        raise ValueError(f"MODEL.{head}.POOLER_FC_DIM is {keys.POOLER_FC_DIM}, expected 1 or more")
    return ModulatedDeformROIPooler(
        **size, **deform, fc_dim=keys.POOLER_FC_DIM, share_levels=keys.POOLER_SHARE_LEVELS
    )
