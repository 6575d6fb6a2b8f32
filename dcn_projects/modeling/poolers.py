"""
RoI pooling from one feature map, or from the level of a pyramid that fits a RoI's size: of an area
of s^2 pixels, that is floor(canonical_level + log2(s / canonical_box_size)) (arXiv 1612.03144,
Eq. 1).
"""

from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_pool

from dcn_projects.layers import DeformROIPool
from dcn_projects.layers.pair import IntPair, pair

__all__ = [
    "DeformROIPooler",
    "LevelPooler",
    "ModulatedDeformROIPooler",
    "ROIPool",
    "build_roi_pooler",
]


class ROIPool(nn.Module):
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


class DeformROIPoolWithOffsets(nn.Module):
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


class LevelPooler(ROIPooler):
    """detectron2's pooler, with pooling that it does not know."""

    def __init__(
        self,
        output_size: IntPair,
        scales: Sequence[float],
        level_poolers: Iterable[nn.Module],
        **canonical,
    ):
        """
        Args:
            output_size, scales: as in detectron2's ROIPooler
            level_poolers: one for each of `scales`, called with a feature map and RoIs (R, 5)
            canonical: `canonical_box_size` and `canonical_level` of ROIPooler
        """
        super().__init__(output_size, scales, 0, "ROIPool", **canonical)
        self.level_poolers = nn.ModuleList(level_poolers)


class DeformROIPooler(LevelPooler):
    """
    Deformable RoI pooling (arXiv 1703.06211, Sec. 2.2). Each level has an offset layer of its own,
    `level_poolers.<i>.offset_fc`. In the original these layers learn at 0.01 of the rate of the
    others: use SOLVER.LR_FACTORS.
    """

    def __init__(
        self,
        output_size: IntPair,
        scales: Sequence[float],
        in_channels: int,
        sampling_ratio: int = 4,
        gamma: float = 0.1,
        **canonical,
    ):
        """
        Args:
            in_channels: channels of each feature map
            sampling_ratio: samples along each side of a bin
            gamma: fraction of the size of the RoI that an offset of 1 stands for
            others: as in LevelPooler
        """
        of_level = in_channels, sampling_ratio, gamma
        levels = [DeformROIPoolWithOffsets(output_size, scale, *of_level) for scale in scales]
        super().__init__(output_size, scales, levels, **canonical)


class OffsetMaskBranch(nn.Sequential):
    """
    The layers that predict offsets and mask of modulated deformable RoI pooling (arXiv 1811.11168,
    Sec. 3.3): two fully connected layers with ReLU, and one of 3K outputs for the K bins, which
    starts at zero. Its first 2K outputs are the offsets, a plane of x and a plane of y, the last K
    are the logits of the mask.
    """

    def __init__(self, in_channels: int, output_size: tuple[int, int], fc_dim: int):
        """
        Args:
            in_channels: C
            output_size: (height, width), number of bins
            fc_dim: width of the two hidden layers
        """
        bins = output_size[0] * output_size[1]
        hidden = nn.Linear(in_channels * bins, fc_dim), nn.Linear(fc_dim, fc_dim)
        last = nn.Linear(fc_dim, 3 * bins)
        super().__init__(hidden[0], nn.ReLU(), hidden[1], nn.ReLU(), last)
        self.output_size = output_size
        for layer in hidden:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            pooled: (R, C, height, width), pooled without offsets
        Returns:
            Tensor, Tensor: offset (R, 2, height, width), mask (R, 1, height, width) in (0, 1)
        """
        planes = super().forward(pooled.flatten(1)).view(-1, 3, *self.output_size)
        return planes[:, :2], planes[:, 2:].sigmoid()


class ModulatedDeformROIPooler(LevelPooler):
    """
    Modulated deformable RoI pooling (arXiv 1811.11168, Eq. 2): offsets and masks of the bins are
    predicted from what is pooled without them. There is one `offset_mask_fc` for all levels, or one
    for each.
    """

    def __init__(
        self,
        output_size: IntPair,
        scales: Sequence[float],
        in_channels: int,
        sampling_ratio: int = 2,
        gamma: float = 0.1,
        fc_dim: int = 1024,
        share_levels: bool = True,
        **canonical,
    ):
        """
        Args:
            in_channels: channels of each feature map
            sampling_ratio: samples along each side of a bin
            gamma: fraction of the size of the RoI that an offset of 1 stands for
            fc_dim: width of the hidden layers that predict offsets and masks
            share_levels: one set of these layers for all feature maps, or one for each
            others: as in LevelPooler
        """
        levels = [DeformROIPool(output_size, scale, sampling_ratio, gamma) for scale in scales]
        super().__init__(output_size, scales, levels, **canonical)
        self.offset_mask_fc = nn.ModuleList(
            OffsetMaskBranch(in_channels, pair(output_size), fc_dim)
            for _ in range(1 if share_levels else len(scales))
        )

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: feature maps, (N, C, H, W) each, finest first
            box_lists: N boxes in input pixels
        Returns:
            Tensor: (R, C, height, width), the RoIs of the first image first
        """
        rois = convert_boxes_to_pooler_format(box_lists)
        levels = torch.zeros(rois.shape[0], dtype=torch.long, device=rois.device)
        if len(x) > 1:
            levels = assign_boxes_to_levels(
                box_lists,
                self.min_level,
                self.max_level,
                self.canonical_box_size,
                self.canonical_level,
            )
        pooled = x[0].new_zeros(rois.shape[0], x[0].shape[1], *pair(self.output_size))
        for i, level in enumerate(x):  # also those without RoIs, so that all take part in gradients
            rows = (levels == i).nonzero()[:, 0]
            pooled = pooled.index_put((rows,), self._pool(i, level, rois[rows]))
        return pooled

    def _pool(self, level: int, x: Tensor, rois: Tensor) -> Tensor:
        pool = self.level_poolers[level]
        predict = self.offset_mask_fc[level if len(self.offset_mask_fc) > 1 else 0]
        rois = rois.to(torch.promote_types(x.dtype, rois.dtype))
        offset, mask = predict(pool(x, rois))
        return pool(x, rois, offset, mask)


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
    kind, output_size = keys.POOLER_TYPE, keys.POOLER_RESOLUTION
    if output_size < 1:
        raise ValueError(f"MODEL.{head}.POOLER_RESOLUTION is {output_size}, expected 1 or more")
    scales = [1.0 / s.stride for s in shapes]
    if kind == "ROIPool":
        return LevelPooler(output_size, scales, [ROIPool(output_size, s) for s in scales])
    if kind in ("ROIAlign", "ROIAlignV2"):
        return ROIPooler(output_size, scales, keys.POOLER_SAMPLING_RATIO, kind)
    if kind not in ("DeformROIPool", "ModulatedDeformROIPool"):
        raise ValueError(
            f"MODEL.{head}.POOLER_TYPE is {kind}, expected ROIPool, ROIAlign, ROIAlignV2, "
            "DeformROIPool or ModulatedDeformROIPool"
        )
    if keys.POOLER_SAMPLING_RATIO < 1:
        raise ValueError(
            f"MODEL.{head}.POOLER_SAMPLING_RATIO is {keys.POOLER_SAMPLING_RATIO}: {kind} needs 1 "
            "or more samples per side of a bin (4 in the original of DeformROIPool, 2 in that of "
            "ModulatedDeformROIPool)"
        )
    deform = dict(
        in_channels=shapes[0].channels,
        sampling_ratio=keys.POOLER_SAMPLING_RATIO,
        gamma=keys.POOLER_GAMMA,
    )
    if kind == "DeformROIPool":
        return DeformROIPooler(output_size, scales, **deform)
    if keys.POOLER_FC_DIM < 1:
        raise ValueError(f"MODEL.{head}.POOLER_FC_DIM is {keys.POOLER_FC_DIM}, expected 1 or more")
    branch = dict(fc_dim=keys.POOLER_FC_DIM, share_levels=keys.POOLER_SHARE_LEVELS)
    return ModulatedDeformROIPooler(output_size, scales, **deform, **branch)
