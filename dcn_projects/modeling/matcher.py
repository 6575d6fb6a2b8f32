import math
from collections.abc import Sequence

from detectron2.modeling.matcher import Matcher

__all__ = ["DynamicMatcher"]


class DynamicMatcher(Matcher):
    """
    detectron2's matcher with one threshold between background and foreground, which follows the
    proposals: dynamic label assignment of Dynamic R-CNN (arXiv 2004.06002, Sec. 4.1).
    """

    def __init__(self, threshold: float):
        """
        Args:
            threshold: IoU from which a proposal is foreground, at the start; also the lowest ever
        """
        super().__init__([threshold], [0, 1])
        self.lowest = threshold

    @property
    def threshold(self) -> float:
        return self.thresholds[1]  # between -inf and inf

    @threshold.setter
    def threshold(self, value: float):
        self.thresholds[1] = value

    def update(self, ious: Sequence[float]) -> float:
        """
        Args:
            ious: the IoU of the K_I-th best proposal in each iteration of a window, at least one
        Returns:
            float: their mean, which is the new threshold unless it is below the lowest
        """
        mean = math.fsum(ious) / len(ious)
        self.threshold = max(mean, self.lowest)
        return mean
