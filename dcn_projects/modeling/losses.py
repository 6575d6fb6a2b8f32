from collections.abc import Sequence

from fvcore.nn import smooth_l1_loss
from torch import Tensor

__all__ = ["DynamicSmoothL1", "center_errors"]

# A median below says only that there are many objects, whose own boxes are proposals without error.
MIN_BETA = 1e-6


class DynamicSmoothL1:
    """
    SmoothL1 whose beta follows the regression errors of the proposals: dynamic SmoothL1 loss of
    Dynamic R-CNN (arXiv 2004.06002, Sec. 4.2). A smaller beta gives precise boxes larger gradients.
    Heads of detectron2, which have this loss with a fixed beta, are given the present one instead
    (see `DynamicTraining`).
    """

    def __init__(self, beta: float):
        """
        Args:
            beta: error at which the loss turns from quadratic to linear, at the start; also the
                highest ever
        """
        self.beta = self.highest = beta

    def update(self, errors: Sequence[float]) -> float:
        """
        Args:
            errors: the K_beta-th smallest error in each iteration of a window, at least one
        Returns:
            float: the upper one of their medians, which is the new beta unless it is above the
                highest. If it is 0, beta stays
        """
        median = sorted(errors)[len(errors) // 2]
        if median >= MIN_BETA:
            self.beta = min(median, self.highest)
        return median

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            input, target: of equal shapes
        Returns:
            Tensor: the sum over all elements, ()
        """
        return smooth_l1_loss(input, target, self.beta, reduction="sum")


def center_errors(boxes: Tensor, gt_boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """
    How far boxes are from their objects, as their regression targets tell: the mean of the
    absolute targets of x and y (dx and dy of R-CNN, arXiv 1311.2524, Appendix C, weighted).

    Args:
        boxes, gt_boxes: (R, 4), x0, y0, x1, y1, the boxes not empty
        weights: of the targets of x and y, and others that are not used
    Returns:
        Tensor: (R,)
    """
    corners = gt_boxes - boxes  # first of all, so that equal boxes have an error of exactly 0
    moved = (corners[:, :2] + corners[:, 2:]) / 2
    dx, dy = (moved / (boxes[:, 2:] - boxes[:, :2])).abs().unbind(dim=1)
    return (weights[0] * dx + weights[1] * dy) / 2
