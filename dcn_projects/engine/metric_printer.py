import logging
from collections.abc import Sequence

from detectron2.utils.events import CommonMetricPrinter, get_event_storage

__all__ = ["MetricPrinter"]


class _WithScalars(logging.LoggerAdapter):
    """Adds the latest value of some scalars to every line, where there are such."""

    def process(self, msg, kwargs):
        prefixes = tuple(self.extra["prefixes"])
        added = ""
        for name, (value, _) in get_event_storage().latest().items():
            if name.startswith(prefixes):
                added += f"  {name.rpartition('/')[2]}: {value:.4g}"
        return msg + added, kwargs


class MetricPrinter(CommonMetricPrinter):
    """detectron2's log line, which has losses only, with the scalars that parts of a model name."""

    def __init__(self, max_iter: int, prefixes: Sequence[str] = ()):
        """
        Args:
            max_iter: iterations of the whole training
            prefixes: of the names of scalars that are printed without what stands before their last
                slash; modules name them in `printed_scalars`
        """
        super().__init__(max_iter)
        self.logger = _WithScalars(self.logger, {"prefixes": prefixes})
        self.printed = None  # the last iteration whose line is there

    def write(self):
        iteration = get_event_storage().iter
        if iteration != self.printed:  # or detectron2 divides by the iterations between two lines
            super().write()
            self.printed = iteration
