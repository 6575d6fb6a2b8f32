import contextlib
import io
import logging
from collections.abc import Iterable

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO

from .annotation_ids import make_ids_usable

__all__ = ["COCOThresholdEvaluator"]

TASK_OF_FIELD = {"pred_masks": "segm", "pred_keypoints": "keypoints"}


class COCOThresholdEvaluator(COCOEvaluator):
    """
    detectron2's COCOEvaluator, which adds AP50, AP55, ..., AP95 to every task: the means over
    classes and recalls at one IoU threshold, for objects of all sizes. Annotations may have any ids
    that differ. Where nothing was detected, all results that COCOEvaluator gives as NaN are 0, if
    there are objects that should have been found, for all that the model detects.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        **options,
    ):
        """
        Args:
            dataset_name, tasks, distributed, output_dir: as in COCOEvaluator
            max_dets_per_image: how many detections of an image count, those with the highest
                scores; None is 100, as on COCO. Keypoints have a limit of their own
            options: others of COCOEvaluator
        """
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            **options,
        )
        self.dataset_name, self.metadata = dataset_name, MetadataCatalog.get(dataset_name)
        self.max_dets_per_image = max_dets_per_image or 100
        make_ids_usable(self._coco_api, self.metadata.json_file)

    def reset(self):
        super().reset()
        self.fields = set()  # of the detections, which have them also if there are none

    def process(self, inputs: list[dict], outputs: list[dict]):
        super().process(inputs, outputs)
        for output in outputs:
            if "instances" in output:
                self.fields |= output["instances"].get_fields().keys()

    def evaluate(self, img_ids: Iterable | None = None) -> dict[str, dict[str, float]]:
        """As in COCOEvaluator."""
        self.img_ids, self.evaluations = img_ids, {}
        results = super().evaluate(img_ids)
        if self.evaluations and not any(e.cocoDt.anns for e in self.evaluations.values()):
            logging.getLogger(__name__).warning(
                f"Nothing was detected on {self.dataset_name}: its results are 0, and NaN where "
                "there is no object to be found."
            )
        return results

    def _tasks_from_predictions(self, predictions):
        of_fields = {task for field, task in TASK_OF_FIELD.items() if field in self.fields}
        return sorted(of_fields.union(super()._tasks_from_predictions(predictions)))

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            coco_eval = self._evaluate_nothing(iou_type)
        self.evaluations[iou_type] = coco_eval
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        thresholds = {}
        for t, threshold in enumerate(coco_eval.params.iouThrs):
            # (thresholds, recalls, classes, areas, detections per image); -1: without objects
            precision = coco_eval.eval["precision"][t, :, :, 0, -1]
            precision = precision[precision > -1]
            ap = 100 * float(np.mean(precision)) if precision.size else float("nan")
            thresholds[f"AP{round(100 * threshold)}"] = ap
        self._logger.info(f"{iou_type} AP per IoU threshold:\n" + create_small_table(thresholds))
        return results | thresholds

    def _evaluate_nothing(self, iou_type: str) -> COCOevalMaxDets:
        """What pycocotools makes of no detections, which cannot be given to it in the usual way."""
        nothing = COCO()
        nothing.dataset = self._coco_api.dataset | {"annotations": []}
        with contextlib.redirect_stdout(io.StringIO()):
            nothing.createIndex()
        evaluation = COCOevalMaxDets(self._coco_api, nothing, iou_type)
        if iou_type != "keypoints":
            evaluation.params.maxDets = [1, 10, self.max_dets_per_image]
        if self.img_ids is not None:
            evaluation.params.imgIds = self.img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation
