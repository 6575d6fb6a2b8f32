import math

import torch
from torch import Tensor

from . import library  # noqa: F401  loads the operators
from .checks import check_soft_nms
from .self_test import SelfTest

NO_ONNX = "how often its loop runs depends on the scores. Apply it to what the model returns"


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.0,
    max_per_class: int | None = None,
) -> tuple[Tensor, Tensor]:
    """
    Soft-NMS (arXiv 1704.04503, Sec. 3): if boxes overlap a better one, their scores are lowered,
    they are not removed.

    In each step the box with the highest score (the first one, if there are several) is taken with
    the score that it has by then. The score of every box that is left, whose IoU with it is o,
    becomes

        "linear"    s * (1 - o) where o >= iou_threshold
        "gaussian"  s * exp(-o^2 / sigma)
        "hard"      0 where o > iou_threshold, which is plain NMS

    A box takes part while its score is above `score_threshold`. A box whose score is NaN takes no
    part.

    Args:
        boxes: (N, 4), x0, y0, x1, y1, far corners exclusive (thus x1 = x2 + 1 for boxes with
            inclusive corners x2). A box without an area, with reversed corners or with a coordinate
            that is not finite overlaps none
        scores: (N,)
        method: "linear", "gaussian" or "hard"
        sigma: width of the Gaussian
        iou_threshold: Nt of the paper, for the other two
        score_threshold: not negative. The published networks take 0.001
        max_per_class: the largest number of boxes that are taken; None for all
    Returns:
        tuple[Tensor, Tensor]: indices (M,) of the boxes taken, int64, in the order of their new
            scores, which are never ascending; and these scores (M,). They are float64 if boxes or
            scores are, else float32, with autocast or without: that is also what is computed in.
            Nothing here has a gradient: the results are detached, constants to `torch.func` too
    Raises:
        RuntimeError: if shapes, dtypes, devices or numbers do not fit; under `torch.vmap`
    """
    _check_rows(boxes, scores, "scores")
    starts = torch.arange(2, device=scores.device) * scores.shape[0]
    rescored = _rescore(
        boxes, scores, starts, method, sigma, iou_threshold, score_threshold, max_per_class
    )
    return _by_score(rescored)


def batched_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.0,
    max_per_class: int | None = None,
) -> tuple[Tensor, Tensor]:
    """
    `soft_nms` within each class by itself.

    Args:
        boxes, scores, method, sigma, iou_threshold, score_threshold: as for `soft_nms`
        idxs: (N,), the class of each box, any integers
        max_per_class: the largest number of boxes of a class that are taken; None for all
    Returns:
        tuple[Tensor, Tensor]: indices (M,) of the boxes taken in all classes, int64, and their new
            scores (M,), in descending order; of equal scores the first box comes first
    Raises:
        RuntimeError: as `soft_nms`
    """
    _check_rows(boxes, scores, "scores")
    _check_rows(boxes, idxs, "idxs")
    sorted_idxs, order = idxs.sort(stable=True)
    lengths = torch.unique_consecutive(sorted_idxs, return_counts=True)[1]
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    rescored = _rescore(
        boxes[order],
        scores[order],
        starts,
        method,
        sigma,
        iou_threshold,
        score_threshold,
        max_per_class,
    )
    return _by_score(torch.empty_like(rescored).index_copy_(0, order, rescored))


def multiclass_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    method: str = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.3,
    score_threshold: float = 0.0,
    max_per_class: int | None = None,
) -> Tensor:
    """
    `soft_nms` of all classes of a box head at once. The result has a fixed size, so that the host
    does not wait for a GPU, and `torch.compile` makes one graph of it. The caller selects from it,
    with `topk` or a mask.

    Args:
        boxes: (R, 4), or (R, K * 4) where each class has boxes of its own: the layouts of
            detectron2's box predictors
        scores: (R, K), without the background
        method, sigma, iou_threshold, score_threshold: as for `soft_nms`
        max_per_class: the largest number of boxes of a class that are taken; None for all
    Returns:
        Tensor: (R, K), the new scores, 0 for boxes that were not taken; dtype as for `soft_nms`
    Raises:
        RuntimeError: as `soft_nms`
    """
    rows = scores.shape[0] if scores.dim() == 2 else -1
    shape = list(boxes.shape)
    if rows < 0 or (shape != [rows, 4] and shape != [rows, 4 * scores.shape[1]]):
        raise RuntimeError(
            "multiclass_soft_nms: scores must be (R, K) and boxes (R, 4) or (R, K * 4), "
            f"got {list(scores.shape)} and {list(boxes.shape)}"
        )
    R, K = scores.shape
    boxes = boxes.reshape(R, boxes.shape[1] // 4, 4).transpose(0, 1).reshape(-1, 4)
    starts = torch.arange(K + 1, device=scores.device) * R
    rescored = _rescore(
        boxes,
        scores.t().reshape(-1),
        starts,
        method,
        sigma,
        iou_threshold,
        score_threshold,
        max_per_class,
    )
    return rescored.view(K, R).t()


def _check_rows(boxes: Tensor, other: Tensor, name: str) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or other.shape != boxes.shape[:1]:
        raise RuntimeError(
            f"soft_nms: boxes must be (N, 4) and {name} (N,), "
            f"got {list(boxes.shape)} and {list(other.shape)}"
        )


def _rescore(
    boxes: Tensor,
    scores: Tensor,
    starts: Tensor,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    max_per_class: int | None,
) -> Tensor:
    # Few of the numbers between two ranks are left in 16 bits, and few pixels of a large image.
    is_wide = boxes.dtype == torch.float64 or scores.dtype == torch.float64
    dtype = torch.float64 if is_wide else torch.float32
    return torch.ops.dcn_projects.soft_nms(
        boxes.detach().to(dtype) if boxes.is_floating_point() else boxes.detach(),
        scores.detach().to(dtype) if scores.is_floating_point() else scores.detach(),
        starts,
        method,
        sigma,
        iou_threshold,
        score_threshold,
        max_per_class,
    )


def _by_score(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and scores of the boxes taken. Within a class this is the order of being taken."""
    keep = scores.nonzero().squeeze(1)
    scores = scores[keep]
    if torch.jit.is_scripting():
        order = scores.argsort(stable=True, descending=True)
    elif torch.jit.is_tracing():
        order = scores.argsort(stable=True, descending=True)
    else:
        # The bits of positive numbers rank as the numbers do, and ten times faster: by a radix
        # sort. Neither a script nor a trace knows a view of another dtype.
        bits = scores.view(torch.int32 if scores.dtype == torch.float32 else torch.int64)
        order = bits.neg().argsort(stable=True)
    return keep[order], scores[order]


@torch.library.register_fake("dcn_projects::soft_nms")
def _(boxes, scores, *arguments):
    check_soft_nms(boxes, scores, *arguments)
    return torch.empty_like(scores)


def _refuse_vmap(*args, **kwargs):
    raise RuntimeError(
        "soft_nms: there is no vmap. batched_soft_nms and multiclass_soft_nms take many sets of "
        "boxes at once"
    )


# The registration lasts as long as this object.
_vmap = torch.library.Library("dcn_projects", "IMPL", "FuncTorchBatched")
_vmap.impl("soft_nms", _refuse_vmap)


# The second box covers half of the first, the third meets none. What x is multiplied with makes the
# scores a result that has a gradient.
def _of_three_boxes(x, move, weight):
    boxes = x.new_tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]])
    keep, scores = soft_nms(boxes, x.new_tensor([0.9, 0.8, 0.7]), sigma=0.5)
    return x.flatten()[keep] * scores


def _by_hand(x, move, weight):
    return x.flatten()[[0, 2, 1]] * x.new_tensor([0.9, 0.7, 0.8 * math.exp(-(0.5**2) / 0.5)])


SELF_TEST = SelfTest(_of_three_boxes, _by_hand)
