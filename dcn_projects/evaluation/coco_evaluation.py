import contextlib
import io
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO

from .annotation_ids import make_ids_usable
from .fast_coco import fast_evaluation
from .why_zero import is_low, tell_nothing, tell_reasons, tell_unknown
from .why_zero_coco import coco_reasons, mask_reasons

__all__ = ["COCOThresholdEvaluator"]

TASK_OF_FIELD = {"pred_masks": "segm", "pred_keypoints": "keypoints"}


class COCOThresholdEvaluator(COCOEvaluator):
    """
    detectron2's COCOEvaluator, which adds AP50, AP55, ..., AP95 to every task: the means over
    classes and recalls at one IoU threshold, for objects of all sizes. Annotations may have any ids
    that differ. Where nothing was detected, all results that COCOEvaluator gives as NaN are 0, if
    there are objects that should have been found, for all that the model detects. Warnings tell the
    reasons of an AP that is 0 or NaN.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        kpt_oks_sigmas: Sequence[float] = (),
        **options,
    ):
        """
        Args:
            dataset_name, tasks, distributed, output_dir: as in COCOEvaluator
            max_dets_per_image: how many detections of an image count, those with the highest
                scores; None is 100, as on COCO. Keypoints have a limit of their own
            kpt_oks_sigmas: how precisely each keypoint is annotated, as in COCOEvaluator; empty
                for the 17 of COCO
            options: others of COCOEvaluator
        """
        has_file = hasattr(MetadataCatalog.get(dataset_name), "json_file")
        if not has_file:
            _remove_cached_annotations(dataset_name, output_dir)
        with _keypoints_kept(dataset_name):
            super().__init__(
                dataset_name,
                tasks,
                distributed,
                output_dir,
                max_dets_per_image=max_dets_per_image,
                kpt_oks_sigmas=kpt_oks_sigmas,
                **options,
            )
        self.dataset_name, self.metadata = dataset_name, MetadataCatalog.get(dataset_name)
        self.distributed, self.max_dets_per_image = distributed, max_dets_per_image or 100
        self.source = self.metadata.json_file
        if not has_file:  # the data set is still in none, as far as others are concerned
            del self.metadata.json_file
        make_ids_usable(self._coco_api, self.source)

    def reset(self):
        super().reset()
        self.fields = set()  # of the detections, which have them also if there are none
        self.unknown = []  # images that the file of annotations does not have

    def process(self, inputs: list[dict], outputs: list[dict]):
        """As in COCOEvaluator. What is detected on images that the file lacks is left out."""
        kept = []
        for image, output in zip(inputs, outputs):
            if "instances" in output:
                self.fields |= output["instances"].get_fields().keys()
            if image["image_id"] not in self._coco_api.imgs:
                self.unknown.append(image["image_id"])
                nothing = {"instances": output["instances"][:0]} if "instances" in output else {}
                output = output | nothing
            kept.append(output)
        super().process(inputs, kept)

    def evaluate(self, img_ids: Iterable | None = None) -> dict[str, dict[str, float]]:
        """As in COCOEvaluator."""
        self.img_ids, self.evaluations = img_ids, {}
        gathered = comm.gather(self.unknown) if self.distributed else [self.unknown]
        with fast_evaluation(self._coco_api):
            results = super().evaluate(img_ids)
        if gathered:  # not in other processes than the main one
            self._explain(results, list(itertools.chain(*gathered)))
        return results

    def _explain(self, results: dict[str, dict[str, float]], unknown: list):
        """What is wrong with the data or the results, in warnings."""
        name, source = self.dataset_name, self.source
        if unknown:
            tell_unknown(unknown, source)
        if "annotations" not in self._coco_api.dataset:
            logging.getLogger(__name__).warning(
                f"{source} has no annotations: {name} has no results, only detections."
            )
        if not self.evaluations:
            return
        task = "bbox" if "bbox" in results else next(iter(results))
        truth, found, ap = self._coco_api, self.evaluations[task].cocoDt, results[task]["AP"]
        if not found.anns and not unknown:
            tell_nothing(name)
        low = np.isnan(ap) or bool(found.anns) and is_low(ap)
        tell_reasons("AP", ap, name, coco_reasons(truth, found, source, low))
        if not low and found.anns and task == "bbox" and "segm" in results:
            ap, masks = results["segm"]["AP"], self.evaluations["segm"].cocoDt
            if is_low(ap):
                tell_reasons("AP of masks", ap, name, mask_reasons(truth, found, masks, source))

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


@contextlib.contextmanager
def _keypoints_kept(dataset_name: str) -> Iterator[None]:
    """
    detectron2 moves the keypoints of records by half a pixel when it writes them to a file. Where a
    data set is a list in memory, they would move on with each evaluation, also for the training.
    """
    kept = []
    if not hasattr(MetadataCatalog.get(dataset_name), "json_file"):
        for record in DatasetCatalog.get(dataset_name):
            lists = [entry.get("keypoints") for entry in record.get("annotations", ())]
            kept += [(keypoints, list(keypoints)) for keypoints in lists if keypoints]
    yield
    for keypoints, before in kept:
        keypoints[:] = before


def _remove_cached_annotations(dataset_name: str, output_dir: str | None) -> None:
    """
    detectron2 writes records that are in no file to one. It would take one of an earlier run in the
    same folder for theirs, although they may have changed since.
    """
    if output_dir:
        if comm.is_main_process():
            Path(output_dir, f"{dataset_name}_coco_format.json").unlink(missing_ok=True)
        comm.synchronize()
