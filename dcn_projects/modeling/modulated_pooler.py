from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn

from dcn_projects.layers import DeformROIPool
from dcn_projects.layers.pair import IntPair, pair

__all__ = ["ModulatedDeformROIPooler", "OffsetMaskBranch"]


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


class ModulatedDeformROIPooler(ROIPooler):
    """
    detectron2's pooler with modulated deformable RoI pooling (arXiv 1811.11168, Eq. 2): offsets and
    masks of the bins are predicted from what is pooled without them. It pools from one feature map,
    or from the level of a pyramid that fits a RoI's size, with one `offset_mask_fc` for all levels
    or one for each.
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
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            in_channels: channels of each feature map
            sampling_ratio: samples along each side of a bin
            gamma: fraction of the size of the RoI that an offset of 1 stands for
            fc_dim: width of the hidden layers that predict offsets and masks
            share_levels: one set of these layers for all feature maps, or one for each
            others: as in detectron2's ROIPooler
        """
        canonical = dict(canonical_box_size=canonical_box_size, canonical_level=canonical_level)
        super().__init__(output_size, scales, 0, "ROIPool", **canonical)
        self.level_poolers = nn.ModuleList(
            DeformROIPool(output_size, scale, sampling_ratio, gamma) for scale in scales
        )
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
        levels = torch.zeros(len(rois), dtype=torch.long, device=rois.device)
        if len(x) > 1:
            levels = assign_boxes_to_levels(
                box_lists,
                self.min_level,
                self.max_level,
                self.canonical_box_size,
                self.canonical_level,
            )
        pooled = x[0].new_zeros(len(rois), x[0].shape[1], *pair(self.output_size))
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
