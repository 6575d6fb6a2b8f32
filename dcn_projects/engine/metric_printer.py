import logging

from detectron2.utils.events import CommonMetricPrinter, get_event_storage

__all__ = ["MetricPrinter"]


class _WithDynamicNumbers(logging.LoggerAdapter):
    """Adds thresholds and betas of Dynamic R-CNN to every line, where there are some."""

    def process(self, msg, kwargs):
        scalars = get_event_storage().latest()
        prefixes = "dynamic_rcnn/iou_threshold", "dynamic_rcnn/beta"
        numbers = [(k, v) for k, (v, _) in scalars.items() if k.startswith(prefixes)]
        added = "".join(f"  {k.removeprefix('dynamic_rcnn/')}: {v:.4g}" for k, v in numbers)
        return msg + added, kwargs


class MetricPrinter(CommonMetricPrinter):
    """detectron2's log line, which has losses only, with the numbers of Dynamic R-CNN."""

    def __init__(self, max_iter: int):
        """
        Args:
            max_iter: iterations of the whole training
        """
        super().__init__(max_iter)
        self.logger = _WithDynamicNumbers(self.logger, {})
