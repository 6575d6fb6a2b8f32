import contextlib
import copy
import importlib.util
from collections.abc import Iterator

import numpy as np
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from PIL import Image

from .sem_seg_evaluation import SemSegIoUEvaluator

__all__ = ["CityscapesIoUEvaluator"]

_TOOLS = "cityscapesscripts"


class CityscapesIoUEvaluator(SemSegIoUEvaluator):
    """
    SemSegIoUEvaluator for the classes of Cityscapes. Predictions are written in the form in which
    its benchmark takes them, grey PNGs of label ids, and evaluated by its own tools, the package
    cityscapesscripts, as well. Several machines need a folder that all of them see.
    """

    def __init__(self, dataset_name: str, output_dir: str, **kwargs):
        """
        Args:
            dataset_name: of a data set with `*_labelIds.png` beside its labels
            others: as in SemSegIoUEvaluator
        """
        super().__init__(dataset_name, output_dir, **kwargs)
        if importlib.util.find_spec(_TOOLS) is None:
            self.logger.warning(
                f"{_TOOLS} is not installed: mIoU without Cityscapes' own evaluation. "
                f"pip install {_TOOLS}"
            )

    def picture(self, labels: np.ndarray) -> Image.Image:
        ids = np.array([category["id"] for category in CITYSCAPES_CATEGORIES], np.uint8)
        return Image.fromarray(ids[labels])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            dict: as in SemSegIoUEvaluator; also "cityscapes", where its tools are installed: IoU
            and iIoU of the classes, IoU_sup and iIoU_sup of the categories, in percent
        Raises:
            OSError: if the tools refuse a file
        """
        results = super().evaluate()
        if results and importlib.util.find_spec(_TOOLS):
            results["cityscapes"] = self._official()
        return results

    def _official(self) -> dict[str, float]:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as tools

        args = copy.copy(tools.args)
        args.quiet, args.JSONOutput = True, False
        truths = [path.replace("labelTrainIds", "labelIds") for path in self.label_files.values()]
        predictions = [str(self.png_file(name)) for name in self.label_files]
        try:
            with numpy_in1d():
                scores = tools.evaluateImgLists(predictions, truths, args)
        except SystemExit as e:  # after it has printed what is wrong
            raise OSError(f"{_TOOLS} could not evaluate {self.output_dir}; see above.") from e
        result = {
            "IoU": scores["averageScoreClasses"],
            "iIoU": scores["averageScoreInstClasses"],
            "IoU_sup": scores["averageScoreCategories"],
            "iIoU_sup": scores["averageScoreInstCategories"],
        }
        result = {name: 100 * float(score) for name, score in result.items()}
        self.logger.info(f"Cityscapes' own evaluation of {self.dataset_name}: {result}")
        return result


@contextlib.contextmanager
def numpy_in1d() -> Iterator[None]:
    """Gives NumPy 2.4 and newer the `in1d` back that cityscapesscripts 2.3 calls."""
    if hasattr(np, "in1d"):
        yield
        return
    np.in1d = np.isin
    try:
        yield
    finally:
        del np.in1d
