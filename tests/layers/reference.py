"""The operators from their equations, in float64 on the CPU: slow, short, differentiable."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    mask: Tensor | None = None,
    *,
    legacy_border: bool = False,
) -> Tensor:
    """
    y(o) = sum_k w_k m_k(o) x(p), p = o * stride - padding + k * dilation + offset_k(o), with
    x(p) = sum over pixels q of max(0, 1 - |q_y - p_y|) max(0, 1 - |q_x - p_x|) x(q)
    (arXiv 1703.06211, Eq. 2-4; arXiv 1811.11168, Eq. 1).
    """
    input, offset, weight = (t.cpu().double() for t in (input, offset, weight))
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    (N, C, H, W), (out_channels, group_size, kh, kw) = input.shape, weight.shape
    K, (Ho, Wo) = kh * kw, offset.shape[2:]
    G, groups = offset.shape[1] // (2 * K), C // group_size
    mask = torch.ones(N, G * K, Ho, Wo) if mask is None else mask
    mask = mask.cpu().double().view(N, G, K, Ho * Wo)
    offset = offset.view(N, G, K, 2, Ho * Wo)
    out_y, out_x = torch.arange(Ho).repeat_interleave(Wo), torch.arange(Wo).repeat(Ho)

    columns = [input.new_zeros(0, Ho * Wo)]
    for n in range(N):
        for g in range(G):
            maps = input[n, g * (C // G) : (g + 1) * (C // G)]
            for k in range(K):
                y = out_y * stride[0] - padding[0] + k // kw * dilation[0] + offset[n, g, k, 0]
                x = out_x * stride[1] - padding[1] + k % kw * dilation[1] + offset[n, g, k, 1]
                counts = y.isfinite() & x.isfinite()
                if legacy_border:
                    counts &= (y >= 0) & (y < H) & (x >= 0) & (x < W)
                    y, x = y.clamp(max=H - 1), x.clamp(max=W - 1)
                y, x = (torch.where(counts, t, -9.0) for t in (y, x))
                rows = F.relu(1 - (y[:, None] - torch.arange(H)).abs())
                cols = F.relu(1 - (x[:, None] - torch.arange(W)).abs())
                columns.append(mask[n, g, k] * torch.einsum("chw,ph,pw->cp", maps, rows, cols))
    columns = torch.cat(columns).view(N, G, K, C // G, Ho * Wo).transpose(2, 3)
    columns = columns.reshape(N, groups, group_size, K, Ho * Wo)
    weight = weight.view(groups, out_channels // groups, group_size, K)
    out = torch.einsum("gock,ngckp->ngop", weight, columns).reshape(N, out_channels, Ho, Wo)
    return out if bias is None else out + bias.cpu().double().view(-1, 1, 1)


def _roi_axis(start: float, end: float, spatial_scale: float, shift: float) -> tuple[float, float]:
    """Start and length, in cells, of a RoI along one axis: rounded, then scaled, then shifted."""
    start, end = (math.copysign(math.floor(abs(v) + 0.5), v) for v in (start, end))
    start = start * spatial_scale - shift
    return start, max(end * spatial_scale - shift - start, 0.1)


def ps_roi_pool(input: Tensor, rois: Tensor, output_size, spatial_scale, group_size=None) -> Tensor:
    """A bin is the mean of the cells that it touches in its channel (arXiv 1605.06409, Eq. 1)."""
    (Ph, Pw), (Gh, Gw) = _pair(output_size), _pair(group_size or output_size)
    N, C, H, W = input.shape
    D = C // (Gh * Gw)
    input = input.cpu().double().view(N, D, Gh, Gw, H, W)
    bins = [input.new_zeros(0)]
    for image, x0, y0, x1, y1 in rois.tolist():
        x, width = _roi_axis(x0, x1, spatial_scale, 0)
        y, height = _roi_axis(y0, y1, spatial_scale, 0)
        for i, j in itertools.product(range(Ph), range(Pw)):
            top, bottom = math.floor(y + i * (height / Ph)), math.ceil(y + (i + 1) * (height / Ph))
            left, right = math.floor(x + j * (width / Pw)), math.ceil(x + (j + 1) * (width / Pw))
            maps = input[int(image), :, i * Gh // Ph, j * Gw // Pw]
            cells = maps[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)].flatten(1)
            bins.append(cells.sum(1) / max(cells.shape[1], 1))
    return torch.cat(bins).view(len(rois), Ph, Pw, D).permute(0, 3, 1, 2)


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size,
    spatial_scale: float,
    sampling_ratio: int = 4,
    gamma: float = 0.1,
    group_size=1,
    mask: Tensor | None = None,
) -> Tensor:
    """
    A bin is the mean of the samples that its offset leaves on the map, times its mask (arXiv
    1703.06211, Eq. 5-6; arXiv 1811.11168, Eq. 2). One sample at a time.
    """
    (Ph, Pw), (Gh, Gw), S = _pair(output_size), _pair(group_size), sampling_ratio
    N, C, H, W = input.shape
    D, R = C // (Gh * Gw), len(rois)
    input = input.cpu().double().view(N, D, Gh, Gw, H, W)
    offset = torch.zeros(R, 2, 1, 1) if offset is None else offset.cpu()
    classes, (part_h, part_w) = offset.shape[1] // 2, offset.shape[2:]
    offset = offset.double().view(R, classes, 2, part_h, part_w)
    bins = [input.new_zeros(0)]
    for n, (image, x0, y0, x1, y1) in enumerate(rois.tolist()):
        x, width = _roi_axis(x0, x1, spatial_scale, 0.5)
        y, height = _roi_axis(y0, y1, spatial_scale, 0.5)
        for k, i, j in itertools.product(range(classes), range(Ph), range(Pw)):
            moved_x, moved_y = offset[n, k, :, i * part_h // Ph, j * part_w // Pw] * gamma
            maps = input[int(image), :, i * Gh // Ph, j * Gw // Pw].chunk(classes)[k]
            values = []
            for a, b in itertools.product(range(S), range(S)):
                h = y + (i + a / S) * (height / Ph) + moved_y * height
                w = x + (j + b / S) * (width / Pw) + moved_x * width
                if not (-0.5 <= h <= H - 0.5 and -0.5 <= w <= W - 0.5):
                    continue
                h, w = h.clamp(0, H - 1), w.clamp(0, W - 1)
                top, bottom, left, right = h.floor(), h.ceil(), w.floor(), w.ceil()
                above, below = (
                    maps[:, int(row), int(left)] * (1 - (w - left))
                    + maps[:, int(row), int(right)] * (w - left)
                    for row in (top, bottom)
                )
                values.append(above * (1 - (h - top)) + below * (h - top))
            bins.append(sum(values) / len(values) if values else maps.new_zeros(len(maps)))
    pooled = torch.cat(bins).view(R, classes, Ph, Pw, D // classes)
    pooled = pooled.permute(0, 1, 4, 2, 3).reshape(R, D, Ph, Pw)
    if mask is None:
        return pooled
    return pooled * mask.cpu().double().repeat_interleave(D // mask.shape[1], 1)


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if not (width > 0 and height > 0):
        return 0.0
    areas = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return width * height / (sum(areas) - width * height)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.0,
    max_per_class: int | None = None,
) -> tuple[list[int], list[float]]:
    """The loop of arXiv 1704.04503, Fig. 3, over finite boxes: indices and scores as taken."""
    boxes = boxes.double().tolist()
    left = {i: s for i, s in enumerate(scores.double().tolist()) if s > score_threshold}
    taken = {}
    while left and len(taken) != max_per_class:
        best = max(left, key=lambda i: (left[i], -i))
        taken[best] = left.pop(best)
        for i in list(left):
            overlap = _iou(boxes[best], boxes[i])
            if method == "linear" and overlap >= iou_threshold:
                left[i] *= 1 - overlap
            elif method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif method == "hard" and overlap > iou_threshold:
                left[i] = 0
            if not left[i] > score_threshold:
                del left[i]
    return list(taken), list(taken.values())
