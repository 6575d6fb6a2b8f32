from collections.abc import Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["InClassOrder"]


class InClassOrder(DatasetEvaluator):
    """
    Passes what a model predicts on to another evaluator, with the classes of the data set in place
    of the classes of the model, for data sets that number the same classes in another order.

    Of an output with "instances" only these change; all else that such a model returns is passed on
    as it is. Of an output without them, "sem_seg" and "labels" change. "proposals" have no classes.
    """

    def __init__(self, evaluator: DatasetEvaluator, classes: Sequence[int]):
        """
        Args:
            evaluator: for the classes of the data set
            classes: for each class of the model, from 0 on, the class of the data set, or -1 where
                the data set has none: such detections are left out. Scores of pixels have to have
                a class of the data set each
        Raises:
            ValueError: if a number is below -1, or two classes of the model have the same number
        """
        numbers = [k for k in classes if k != -1]
        if any(k < 0 for k in numbers) or len(set(numbers)) < len(numbers):
            raise ValueError(
                f"The numbers of classes must differ, and be 0 or more, or -1; got {list(classes)}."
            )
        self.evaluator = evaluator
        self.classes = torch.tensor(list(classes), dtype=torch.int64)

    def reset(self):
        self.evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]):
        """
        Args:
            inputs: as the other evaluator takes them
            outputs: for each image a dict, not changed, with "instances" that have pred_classes, or
                with "sem_seg", (K, H, W) scores, and perhaps "labels", (h, w) classes; K classes of
                the model
        Raises:
            ValueError: if there are scores of pixels and a class that the data set does not have,
                or if the model has another number of classes
        """
        self.evaluator.process(inputs, [self._in_order(output) for output in outputs])

    def evaluate(self):
        """
        Returns:
            what the other evaluator returns
        """
        return self.evaluator.evaluate()

    def _in_order(self, output: dict) -> dict:
        if "instances" in output:
            return output | {"instances": self._of_objects(output["instances"])}
        changed = {}
        if "sem_seg" in output:
            self._check_pixels(len(output["sem_seg"]))
            changed["sem_seg"] = self._of_scores(output["sem_seg"])
            if "labels" in output:
                changed["labels"] = self._looked_up(output["labels"])
        return output | changed

    def _check_pixels(self, num_classes: int) -> None:
        if num_classes != len(self.classes):
            raise ValueError(
                f"The model scores {num_classes} classes of pixels, but the order names "
                f"{len(self.classes)}: give one number for each class of the model."
            )
        if missing := (self.classes < 0).nonzero().flatten().tolist():
            raise ValueError(
                f"The data set does not have the classes {missing} of the model, and pixels cannot "
                "be left out as detections can: evaluate on a data set with all of its classes."
            )

    def _of_objects(self, instances: Instances) -> Instances:
        classes = self._looked_up(instances.pred_classes)
        kept = instances[classes >= 0]  # a copy
        kept.pred_classes = classes[classes >= 0]
        return kept

    def _of_scores(self, scores: Tensor) -> Tensor:
        """(K, H, W) -> (K', H, W), where classes that the model does not know are never best."""
        limits = torch.finfo if scores.is_floating_point() else torch.iinfo
        ordered = scores.new_full(
            (int(self.classes.max()) + 1, *scores.shape[1:]), limits(scores.dtype).min
        )
        ordered[self.classes.to(scores.device)] = scores
        return ordered

    def _looked_up(self, predicted: Tensor) -> Tensor:
        """Classes of the model, of any shape -> classes of the data set, int64."""
        predicted = predicted.long()
        if predicted.numel() and int(predicted.max()) >= len(self.classes):
            raise ValueError(
                f"The model predicts the class {int(predicted.max())}, but the order names "
                f"{len(self.classes)} classes: give one number for each class of the model."
            )
        return self.classes.to(predicted.device)[predicted]
