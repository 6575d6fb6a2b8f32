import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate

from .why_zero import is_low, tell_reasons
from .why_zero_pixels import one_class, pixel_reasons

__all__ = ["SemSegIoUEvaluator"]


class SemSegIoUEvaluator(DatasetEvaluator):
    """
    Intersection over union of each class, over the pixels of all images, and its mean (mIoU).
    Pixels with the ignored label do not count. A class that is neither annotated nor predicted has
    the IoU NaN and does not count in the mean, as in Cityscapes' own evaluation; the
    MXNet code of DeepLab counts it as 0.

    There are two protocols: at the size of the annotations and, where the model returns "labels",
    at the size of the scaled image, to which the annotations are scaled by repeating pixels. In the
    latter the MXNet code of DeepLab evaluates VOC, with a short side of 360.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        read_labels: Callable[[str, int, int], np.ndarray],
    ):
        """
        Args:
            dataset_name: a data set with the metadata stuff_classes, ignore_label and, for colours
                in the PNGs, stuff_colors
            output_dir: under it the predictions are written, as sem_seg/<name of the image>.png
            read_labels: function of path, number of classes and ignored label that returns (H, W)
                labels
        """
        self.dataset_name = dataset_name
        self.output_dir = Path(output_dir) / "sem_seg" if output_dir else None
        self.metadata = MetadataCatalog.get(dataset_name)
        self.class_names = self.metadata.stuff_classes
        self.read_labels = read_labels
        self.label_files = {
            record["file_name"]: record["sem_seg_file_name"]
            for record in DatasetCatalog.get(dataset_name)
        }
        self.logger = logging.getLogger(__name__)

    def reset(self):
        # protocol -> (K, K) pixels, annotated class by predicted class
        self.pixels = Counter()
        if self.output_dir:
            self.output_dir.mkdir(parents=True, exist_ok=True)

    def process(self, inputs: list[dict], outputs: list[dict]):
        """
        Args:
            inputs: per image a dict with "file_name"
            outputs: per image a dict with "sem_seg", (K, H, W) scores at the size of the file, and
                perhaps "labels", (h, w) classes at the size that the network saw
        Raises:
            OSError: if labels cannot be read, or do not have the size of the image
        """
        for image, output in zip(inputs, outputs):
            path = self.label_files[image["file_name"]]
            num_classes, ignored = len(self.class_names), self.metadata.ignore_label
            truth = self.read_labels(path, num_classes, ignored)
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            if truth.shape != predicted.shape:
                raise OSError(
                    f"{path} has {truth.shape[1]} x {truth.shape[0]} pixels, but its image "
                    f"{image['file_name']} has {predicted.shape[1]} x {predicted.shape[0]}."
                )
            self.pixels["sem_seg"] += confusion(truth, predicted, num_classes, ignored)
            if "labels" in output:
                seen = output["labels"].cpu().numpy()
                scaled = np.asarray(Image.fromarray(truth).resize(seen.shape[::-1], Image.NEAREST))
                pixels = confusion(scaled, seen, num_classes, ignored)
                self.pixels["sem_seg_input_size"] += pixels
            if self.output_dir:
                self.picture(predicted.astype(np.uint8)).save(self.png_file(image["file_name"]))

    def png_file(self, file_name: str) -> Path:
        """Where the prediction for an image is written."""
        return self.output_dir / f"{Path(file_name).stem}.png"

    def picture(self, labels: np.ndarray) -> Image.Image:
        """What is written for (H, W) classes, uint8: they are indices of a palette."""
        image = Image.fromarray(labels)
        if colors := self.metadata.get("stuff_colors"):
            image.putpalette(np.ravel(colors).tolist())
        return image

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        To be called from all processes.

        Returns:
            dict: in the main process, for "sem_seg" and perhaps "sem_seg_input_size", in percent:
            mIoU, pACC (the share of pixels that are right) and IoU-<class>
        """
        gathered = comm.gather(self.pixels, dst=0)
        if not comm.is_main_process():
            return None
        total = sum_all(gathered)
        results = {protocol: self._summary(pixels) for protocol, pixels in total.items()}
        rows = [[key, *(r[key] for r in results.values())] for key in results["sem_seg"]]
        table = tabulate(rows, ["percent", *results], tablefmt="pipe", floatfmt=".3f")
        self.logger.info(f"Evaluation results for {self.dataset_name}:\n{table}")
        self._explain(results["sem_seg"]["mIoU"], total["sem_seg"])
        return results

    def _explain(self, miou: float, pixels: np.ndarray):
        reasons = one_class(pixels, self.class_names)
        reasons = [reasons] if reasons else []
        if is_low(miou):
            folder = str(Path(next(iter(self.label_files.values()))).parent)
            ignored = self.metadata.ignore_label
            reasons += pixel_reasons(pixels, self.class_names, ignored, folder)
        tell_reasons("mIoU", miou, self.dataset_name, reasons)

    def _summary(self, pixels: np.ndarray) -> dict[str, float]:
        right = pixels.diagonal().astype(np.float64)
        union = pixels.sum(axis=0) + pixels.sum(axis=1) - right
        iou = np.divide(100 * right, union, out=np.full(len(right), np.nan), where=union > 0)
        result = {"mIoU": mean(iou), "pACC": float(100 * right.sum() / max(pixels.sum(), 1))}
        return result | {f"IoU-{name}": float(x) for name, x in zip(self.class_names, iou)}


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int, ignored: int):
    """Pixels by annotated class (row) and predicted class (column), (K, K), int64."""
    counted = truth != ignored
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def sum_all(counters: list[Counter]) -> dict[str, np.ndarray]:
    total = {}
    for counter in counters:
        for key, value in counter.items():
            total[key] = total.get(key, 0) + value
    return total


def mean(values: np.ndarray) -> float:
    """Of those that are not NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
