"""What the RoI pooling operators share: the region of a RoI, and the group cell of a bin."""

import math

import torch
from torch import Tensor


def roi_regions(op, rois, images, spatial_scale, shift, dtype) -> tuple[Tensor, ...]:
    """
    Args:
        shift: in cells, by which regions are moved up and left
    Returns:
        image: (R,), int64
        start, length: (2, R) of (y, x), in cells of the map; start is NaN where nothing can be
            pooled, length is always finite
    Raises:
        RuntimeError: on the CPU, if an index is not one of the batch
    """
    rois = rois.to(dtype)
    index, corners = rois[:, 0], rois[:, 1:]
    usable = (index >= 0) & (index < images)
    if rois.device.type == "cpu" and not usable.all():
        n = int(usable.logical_not().nonzero()[0])
        raise RuntimeError(f"{op}: RoI {n} is on image {index[n]:g} of a batch of {images}")
    whole = corners.trunc()
    corners = whole + ((corners - whole).abs() >= 0.5) * corners.sign()  # halves away from zero
    x0, y0, x1, y1 = (corners * spatial_scale - shift).unbind(1)
    start = torch.stack([y0, x0])
    length = torch.stack([y1, x1]) - start
    usable = usable & start.isfinite().all(0) & length.isfinite().all(0)
    start, length = torch.where(usable, start, math.nan), torch.where(usable, length, 0)
    return torch.where(usable, index, 0).long(), start, length.clamp(min=0.1)


def groups_of_bins(pooled: int, groups: int, device: torch.device) -> Tensor:
    """
    Returns:
        Tensor: (pooled,), along one axis the one of `groups` cells that a bin belongs to
    """
    return torch.arange(pooled, device=device) * groups // pooled
