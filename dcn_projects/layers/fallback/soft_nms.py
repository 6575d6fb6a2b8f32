"""soft_nms in rounds, in each of which every class takes its best box."""

import torch
from torch import Tensor

from ..checks import check_soft_nms
from .chunks import chunks


def soft_nms(boxes, scores, starts, method, sigma, iou_threshold, score_threshold, max_per_class):
    rule = (method, sigma, iou_threshold)
    check_soft_nms(boxes, scores, starts, *rule, score_threshold, max_per_class)
    lengths = starts.diff()
    _check_starts(starts.tolist(), lengths.tolist(), len(scores))
    out = torch.zeros_like(scores)
    for part in chunks(len(lengths), 4 * max(lengths.tolist(), default=0)):
        # All that follows is (classes, boxes); a score of 0 marks a box that takes no part.
        number = torch.arange(int(lengths[part].max()), device=scores.device)
        exists = number < lengths[part, None]
        place = torch.where(exists, starts[:-1][part, None] + number, 0)
        left = torch.where(exists & (scores[place] > score_threshold), scores[place], 0)
        corners = boxes[place % max(len(boxes), 1)]
        taken = _take_boxes(corners, left, rule, score_threshold, max_per_class)
        out[place[exists]] = taken[exists]
    return out


def _check_starts(starts: list[int], lengths: list[int], N: int) -> None:
    for first, length in zip(starts, lengths):
        if first < 0 or length < 0 or first + length > N:
            raise RuntimeError(
                f"soft_nms: starts must ascend within 0, ..., {N}, "
                f"got {first} before {first + length}"
            )


def _take_boxes(boxes, left, rule, score_threshold, max_per_class) -> Tensor:
    """
    Args:
        boxes: (S, L, 4)
        left: (S, L), the scores; those of boxes that are taken or have lost all are set to 0
    Returns:
        Tensor: (S, L), the scores that boxes were taken with
    """
    taken = torch.zeros_like(left)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(2)
    classes, rounds = torch.arange(len(left), device=left.device), left.shape[1]
    for _ in range(rounds if max_per_class is None else min(rounds, max_per_class)):
        best = (classes, left.argmax(1))  # of equal ones the first
        score = left[best]
        if not score.any():
            break
        taken[best] += score  # 0 where a class is done
        left[best] = 0
        low = torch.maximum(boxes[..., :2], boxes[best][:, None, :2])
        high = torch.minimum(boxes[..., 2:], boxes[best][:, None, 2:])
        shared = (high - low).clamp(min=0).prod(2)
        iou = shared / (area[best][:, None] + area - shared)
        left *= _factor(torch.where(iou > 0, iou, 0), *rule)
        left = torch.where(left > score_threshold, left, 0)  # also for NaN, infinity times 0
    return taken


def _factor(iou: Tensor, method: str, sigma: float, iou_threshold: float) -> Tensor:
    if method == "linear":
        return torch.where(iou < iou_threshold, 1, 1 - iou)
    if method == "gaussian":
        # Finite, so that boxes which do not overlap lose nothing however small sigma is.
        return torch.exp(iou * iou * max(-1 / sigma, torch.finfo(iou.dtype).min))
    return torch.where(iou > iou_threshold, 0.0, 1.0).to(iou.dtype)
