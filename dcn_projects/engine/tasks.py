"""
What kinds of models there are. This is the only place that tells them apart: whoever has to know
where the number of classes is, which mapper reads the data or which evaluator measures the results
asks `task_of(cfg)`. A new kind of model is one more row, which a program of the user's own can add.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, RetinaNet, SemanticSegmentor
from torch import nn

from dcn_projects.data import CheckedDatasetMapper, SemSegMapper, read_labels
from dcn_projects.evaluation import (
    CityscapesIoUEvaluator,
    COCOThresholdEvaluator,
    PascalVOCThresholdEvaluator,
    SemSegIoUEvaluator,
)
from dcn_projects.modeling import MultiScaleTTA, SemSegTTA, meta_architecture

__all__ = ["OBJECT_EVALUATORS", "TASKS", "Task", "register_task", "task_of"]

# Evaluator type in the Metadata of a data set -> its evaluator, called with the name of the data
# set and `output_dir`.
OBJECT_EVALUATORS = {"coco": COCOThresholdEvaluator, "pascal_voc": PascalVOCThresholdEvaluator}
PIXEL_EVALUATORS = {
    "sem_seg": functools.partial(SemSegIoUEvaluator, read_labels=read_labels),
    "cityscapes_sem_seg": functools.partial(CityscapesIoUEvaluator, read_labels=read_labels),
}


@dataclass(frozen=True)
class Task:
    """
    A kind of model.

    Attributes:
        architectures: classes (or builder functions) in META_ARCH_REGISTRY; classes derived from
            them belong to the same kind, unless another row names them
        num_classes: key of the number of classes
        output: what the model returns of each image, "instances" or "sem_seg"; the data sets have
            objects for the former, and the class of every pixel for the latter
        components: keys that name the parts of the model in detectron2's registries, each with the
            switch that must be on for it, or ""
        masks: key that says whether the model learns masks of objects, or ""
        mapper: class of what reads images and annotations: `mapper(cfg, is_train=...)`
        evaluators: evaluator type in a data set's Metadata -> function of the name of the data set
            and `output_dir`
        augmentation: test-time augmentation, function of the config and the model, that returns
            what is evaluated in its place; None if there is none for such models
        augments_file: whether the config has the views of test-time augmentation made from the
            image file rather than from the image that is scaled for testing
    """

    architectures: tuple[Callable, ...]
    num_classes: str
    output: str = "instances"
    components: Mapping[str, str] = field(default_factory=dict)
    masks: str = ""
    mapper: Callable = CheckedDatasetMapper
    evaluators: Mapping[str, Callable] = field(default_factory=lambda: OBJECT_EVALUATORS)
    augmentation: Callable[[CfgNode, nn.Module], nn.Module] | None = None
    augments_file: Callable[[CfgNode], bool] = bool

    @property
    def class_names(self) -> str:
        """Where the Metadata of a data set has the names of the classes."""
        return "stuff_classes" if self.output == "sem_seg" else "thing_classes"

    @property
    def finds(self) -> str:
        """What such models find, in words."""
        return "the classes of pixels" if self.output == "sem_seg" else "objects"

    def learns_masks(self, cfg: CfgNode) -> bool:
        return bool(self.masks) and value_of(cfg, self.masks)


_RCNN_PARTS = {
    "MODEL.BACKBONE.NAME": "",
    "MODEL.PROPOSAL_GENERATOR.NAME": "",
    "MODEL.RPN.HEAD_NAME": "",
    "MODEL.ANCHOR_GENERATOR.NAME": "",
    "MODEL.ROI_HEADS.NAME": "",
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_MASK_HEAD.NAME": "MODEL.MASK_ON",
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "MODEL.KEYPOINT_ON",
}

TASKS = [
    Task(
        architectures=(GeneralizedRCNN,),
        num_classes="MODEL.ROI_HEADS.NUM_CLASSES",
        components=_RCNN_PARTS,
        masks="MODEL.MASK_ON",
        augmentation=MultiScaleTTA,
        augments_file=lambda cfg: cfg.TEST.AUG.MERGE == "raw",
    ),
    Task(
        architectures=(RetinaNet,),
        num_classes="MODEL.RETINANET.NUM_CLASSES",
        components={"MODEL.BACKBONE.NAME": "", "MODEL.ANCHOR_GENERATOR.NAME": ""},
    ),
    Task(
        architectures=(SemanticSegmentor,),
        num_classes="MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        output="sem_seg",
        components={"MODEL.BACKBONE.NAME": "", "MODEL.SEM_SEG_HEAD.NAME": ""},
        mapper=SemSegMapper,
        evaluators=PIXEL_EVALUATORS,
        augmentation=SemSegTTA,
        augments_file=lambda cfg: True,
    ),
]


def register_task(task: Task) -> None:
    """
    Add a kind of model. Of several rows that name a class, the one that was added last counts.

    Raises:
        ValueError: if `output` is neither "instances" nor "sem_seg"
    """
    if task.output not in ("instances", "sem_seg"):
        raise ValueError(f"Task.output is {task.output!r}, expected 'instances' or 'sem_seg'")
    TASKS.append(task)


def task_of(cfg: CfgNode) -> Task:
    """
    Returns:
        Task: the row whose class is MODEL.META_ARCHITECTURE, or the nearest of its bases
    Raises:
        ValueError: if there is none: nobody would know where its classes are
    """
    model = meta_architecture(cfg)
    for base in getattr(model, "__mro__", (model,)):
        for task in reversed(TASKS):
            if base in task.architectures:
                return task
    raise ValueError(
        f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: it is not known where such a "
        "model has its number of classes and how it is evaluated. Say so with "
        "dcn_projects.engine.register_task (CONTRIBUTING.md shows how)"
    )


def value_of(cfg: CfgNode, key: str):
    """The value of a key that is written in full, such as "MODEL.MASK_ON"."""
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)
