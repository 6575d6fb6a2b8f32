import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table

from .annotation_ids import make_ids_usable

__all__ = ["COCOThresholdEvaluator"]


class COCOThresholdEvaluator(COCOEvaluator):
    """
    detectron2's COCOEvaluator, which adds AP50, AP55, ..., AP95 to every task: the means over
    classes and recalls at one IoU threshold, for objects of all sizes. Annotations may have any ids
    that differ.
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
        self.metadata = MetadataCatalog.get(dataset_name)
        make_ids_usable(self._coco_api, self.metadata.json_file)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None:  # nothing was detected
            return results | dict.fromkeys(map("AP{}".format, range(50, 100, 5)), float("nan"))
        thresholds = {}
        for t, threshold in enumerate(coco_eval.params.iouThrs):
            # (thresholds, recalls, classes, areas, detections per image); -1: without objects
            precision = coco_eval.eval["precision"][t, :, :, 0, -1]
            precision = precision[precision > -1]
            ap = 100 * float(np.mean(precision)) if precision.size else float("nan")
            thresholds[f"AP{round(100 * threshold)}"] = ap
        self._logger.info(f"{iou_type} AP per IoU threshold:\n" + create_small_table(thresholds))
        return results | thresholds
