import functools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from .why_zero import is_low, tell_nothing, tell_reasons, tell_unknown
from .why_zero_voc import voc_reasons

__all__ = ["PascalVOCThresholdEvaluator"]

THRESHOLDS = range(50, 100, 5)  # percent IoU
IN_TABLE = (50, 70)  # those of the papers


class PascalVOCThresholdEvaluator(PascalVOCDetectionEvaluator):
    """
    detectron2's PascalVOCDetectionEvaluator with AP at every IoU threshold, per class, and by both
    metrics of Pascal VOC: the mean of the precision at 11 recalls (2007), and the area under the
    precision-recall curve (from 2010 on).

    The rules are the original's: detections are rounded to 3 decimals of the score and 1 of the
    box; boxes include their last pixel, so that widths are x1 - x0 + 1; a detection belongs to the
    object that it overlaps most, and finds it if the IoU is above (not at) the threshold; if
    several find the same object, only the one with the highest score is right; one that finds a
    difficult object is neither right nor wrong, and such objects need not be found. Detections of
    equal score come in the order of NumPy's default sort, as in detectron2.

    A class without objects, other than difficult ones, has AP NaN and does not count in the means.
    Warnings tell the reasons of an AP that is 0 or NaN.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        read_objects: Callable[[str, str, Sequence[str]], Mapping[str, Sequence[tuple]]],
    ):
        """
        Args:
            dataset_name: a data set with the metadata dirname, split, year (2007 or 2012) and
                thing_classes
            output_dir: where the detections are written, as voc_instances_results.json
            read_objects: function of dirname, split and class names that returns, for the id of
                every image, (class name, difficult, box) of each object, boxes as in its file
        """
        super().__init__(dataset_name)
        self._output_dir = output_dir
        meta = MetadataCatalog.get(dataset_name)
        self._read_objects = functools.partial(
            read_objects, meta.dirname, meta.split, meta.thing_classes
        )
        self.dirname = meta.dirname

    def reset(self):
        super().reset()
        self.sizes = {}  # image id -> width, height

    def process(self, inputs: list[dict], outputs: list[dict]):
        """As in PascalVOCDetectionEvaluator."""
        super().process(inputs, outputs)
        for image in inputs:
            if "width" in image:
                self.sizes[image["image_id"]] = image["width"], image["height"]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        To be called from all processes.

        Returns:
            dict: in the main process. "bbox" is by the metric of the data set's year, and
            "bbox_area" (2007) or "bbox_11_points" (2012) by the other one. Each has, in percent,
            AP (the mean over all thresholds), AP50, AP75, AP55, ..., AP95 and, per class,
            AP50-<class> and AP70-<class>
        """
        gathered = comm.gather((self._predictions, self.sizes), dst=0)
        if not comm.is_main_process():
            return None
        # Class index -> image, score, x0, y0, x1, y1 of every detection, all as texts
        detections = {
            k: [_split(line) for predictions, _ in gathered for line in predictions.get(k, ())]
            for k in range(len(self._class_names))
        }
        if self._output_dir:
            self._write(detections)
        annotations = self._read_objects()
        images = {row[0] for rows in detections.values() for row in rows}
        if unknown := sorted(images - annotations.keys()):
            tell_unknown(unknown, self.dirname)
            detections = {
                k: [row for row in rows if row[0] in annotations] for k, rows in detections.items()
            }
        metrics = {"bbox": self._is_2007}
        metrics["bbox_area" if self._is_2007 else "bbox_11_points"] = not self._is_2007
        aps = {task: defaultdict(dict) for task in metrics}  # task -> threshold -> class -> AP
        for k, name in enumerate(self._class_names):
            curves = _precision_recall(detections[k], annotations, name)
            for threshold, (recall, precision) in zip(THRESHOLDS, curves):
                for task, use_07_metric in metrics.items():
                    ap = voc_ap(recall, precision, use_07_metric) if recall is not None else np.nan
                    aps[task][threshold][name] = 100 * float(ap)
        self._log(aps, metrics)
        results = {task: _summary(values) for task, values in aps.items()}
        if not images:
            tell_nothing(self._dataset_name)
        ap, sizes = results["bbox"]["AP"], {k: v for _, some in gathered for k, v in some.items()}
        low = np.isnan(ap) or is_low(ap) and any(detections.values())
        names = self._class_names
        reasons = voc_reasons(annotations, detections, sizes, names, self.dirname, low)
        tell_reasons("AP", ap, self._dataset_name, reasons)
        return results

    def _write(self, detections):
        results = []
        for k, name in enumerate(self._class_names):
            for image_id, score, *box in detections[k]:
                box = [float(x) for x in box]
                results.append(
                    {"image_id": image_id, "category": name, "bbox": box, "score": float(score)}
                )
        PathManager.mkdirs(self._output_dir)
        path = os.path.join(self._output_dir, "voc_instances_results.json")
        with PathManager.open(path, "w") as f:
            json.dump(results, f)
        self._logger.info(f"Wrote the detections to {path}")

    def _log(self, aps, metrics):
        titles = {
            (task, t): f"AP{t} ({'11 points' if use_07_metric else 'area'})"
            for task, use_07_metric in metrics.items()
            for t in IN_TABLE
        }
        rows = [
            [name, *(aps[task][t][name] for task, t in titles)] for name in self._class_names
        ] + [["mean", *(_mean(aps[task][t].values()) for task, t in titles)]]
        table = tabulate(rows, ["category", *titles.values()], tablefmt="pipe", floatfmt=".3f")
        self._logger.info(f"Evaluation results for {self._dataset_name}:\n{table}")


def _summary(aps: dict[int, dict[str, float]]) -> dict[str, float]:
    means = {t: _mean(per_class.values()) for t, per_class in aps.items()}
    result = {"AP": _mean(means.values()), "AP50": means[50], "AP75": means[75]}
    result |= {f"AP{t}": ap for t, ap in means.items()}
    return result | {f"AP{t}-{name}": ap for t in IN_TABLE for name, ap in aps[t].items()}


def _mean(values) -> float:
    """Of those that are not NaN."""
    values = [v for v in values if not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")


def _split(line: str) -> list[str]:
    """image, score, x0, y0, x1, y1. The name of the image may have spaces."""
    return line.rsplit(" ", 5)


def _precision_recall(
    rows: list[list[str]], annotations: Mapping[str, Sequence[tuple]], name: str
) -> list[tuple]:
    """
    Args:
        rows: image, score, x0, y0, x1, y1 of every detection of a class, as texts
        annotations: image id -> (class name, difficult, box) of every object
        name: of the class
    Returns:
        list: per threshold recall and precision, (D,) each, after every detection from the surest
        on; None and None where there is no object to be found
    """
    boxes, first, difficult = {}, {}, []  # boxes and the index of the first object per image
    for image_id, objects in annotations.items():
        objects = [(hard, box) for n, hard, box in objects if n == name]
        first[image_id] = len(difficult)
        difficult += [hard for hard, _ in objects]
        boxes[image_id] = np.array([box for _, box in objects]).reshape(-1, 4)
    num_objects = len(difficult) - sum(difficult)
    if num_objects == 0:
        return [(None, None)] * len(THRESHOLDS)

    rows = [rows[i] for i in np.argsort([-float(row[1]) for row in rows])]
    by_image = defaultdict(list)
    for i, row in enumerate(rows):
        by_image[row[0]].append(i)
    overlap, nearest = np.full(len(rows), -np.inf), np.zeros(len(rows), dtype=int)
    for image_id, index in by_image.items():
        if len(boxes[image_id]):
            detected = np.array([rows[i][2:] for i in index], dtype=np.float64)
            iou = _pairwise_iou(detected, boxes[image_id])
            overlap[index] = iou.max(axis=1)
            nearest[index] = first[image_id] + iou.argmax(axis=1)

    curves = []
    to_be_found = ~np.array(difficult)[nearest]
    for threshold in THRESHOLDS:
        found = overlap > threshold / 100
        candidates = np.flatnonzero(found & to_be_found)
        right = np.zeros(len(rows), dtype=bool)
        right[candidates[np.unique(nearest[candidates], return_index=True)[1]]] = True
        wrong = ~right & (to_be_found | ~found)
        num_right, num_wrong = right.cumsum(), wrong.cumsum()
        # Nothing is right or wrong yet where the surest find difficult objects.
        precision = num_right / np.maximum(num_right + num_wrong, 1)
        curves.append((num_right / num_objects, precision))
    return curves


def _pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, 4) and (N, 4), with inclusive corners -> (M, N)."""
    size = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2]) + 1
    intersection = np.maximum(size, 0).prod(axis=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2] + 1).prod(axis=1) for x in (a, b))
    return intersection / (area_a[:, None] + area_b - intersection)
