import torch
from detectron2.modeling import SemanticSegmentor
from fvcore.transforms.transform import HFlipTransform
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .test_time_augmentation import MultiScaleMapper, augmentation_options

__all__ = ["SemSegTTA"]


class SemSegTTA(nn.Module):
    """
    Test-time augmentation by scales and flips for a SemanticSegmentor: the mean of the
    probabilities of all views, each at the size of the result. The scales are those of
    `augmentation_options`; they are made of the image as it comes in.
    """

    def __init__(self, cfg, model: nn.Module):
        """
        Args:
            cfg: config; TEST.AUG is read
            model: a SemanticSegmentor, may be wrapped for several processes
        Raises:
            ValueError: if a key has a value that cannot be used
            TypeError: for another model
        """
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        if not isinstance(self.model, SemanticSegmentor):
            raise TypeError(f"{type(self.model).__name__} is no SemanticSegmentor")
        options = augmentation_options(cfg)
        self.mapper = MultiScaleMapper(options["scales"], options["flip"])

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, torch.Tensor]]:
        """
        Args:
            batched_inputs: as in SemanticSegmentor, with `height` and `width`
        Returns:
            list: per image a dict with "sem_seg", probabilities, (K, height, width)
        """
        return [{"sem_seg": self.probabilities(inputs)} for inputs in batched_inputs]

    def probabilities(self, inputs: dict) -> torch.Tensor:
        """Of one image, (K, height, width)."""
        views = self.mapper(inputs)
        total = 0
        for view in views:
            transforms = view.pop("transforms").transforms
            (output,) = self.model([view])
            probabilities = output["sem_seg"].softmax(dim=0)
            if any(isinstance(t, HFlipTransform) for t in transforms):
                probabilities = probabilities.flip(-1)
            total = total + probabilities
        return total / len(views)
