"""
What kinds of models there are. This is the only place that distinguishes them: code that has to
know where the number of classes is, which mapper reads the data or which evaluator measures the
results asks `task_of(cfg)`. A new kind of model is one more row, which a user's program can add.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    RetinaNet,
    SemanticSegmentor,
)
from torch import nn

from dcn_projects.config_keys import value_of
from dcn_projects.data import CheckedDatasetMapper, SemSegMapper, read_labels, read_voc_objects
from dcn_projects.evaluation import (
    CityscapesIoUEvaluator,
    COCOThresholdEvaluator,
    PascalVOCThresholdEvaluator,
    SemSegIoUEvaluator,
)
from dcn_projects.modeling import MultiScaleTTA, SemSegTTA, meta_architecture

__all__ = [
    "OBJECT_EVALUATORS",
    "PIXEL_EVALUATORS",
    "REGISTRIES",
    "TASKS",
    "Task",
    "register_task",
    "task_of",
]

# Key that names a part of a model -> where the part is registered.
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
# Evaluator type in the Metadata of a data set -> its evaluator, see `Task`.
OBJECT_EVALUATORS = {
    "coco": COCOThresholdEvaluator,
    "pascal_voc": functools.partial(PascalVOCThresholdEvaluator, read_objects=read_voc_objects),
}
PIXEL_EVALUATORS = {
    "sem_seg": functools.partial(SemSegIoUEvaluator, read_labels=read_labels),
    "cityscapes_sem_seg": functools.partial(CityscapesIoUEvaluator, read_labels=read_labels),
}
COCO_LIMIT = 100  # detections of an image that count on COCO
ALL_DETECTIONS = 10**6  # more than an image has: a negative TEST.DETECTIONS_PER_IMAGE keeps all


@dataclass
class Task:
    """
    A kind of model.

    Attributes:
        architectures: classes (or builder functions) in META_ARCH_REGISTRY; classes derived from
            them belong to the same kind, unless another row names them
        num_classes: key of the number of classes; "" for models that tell no classes apart
        output: what the model returns of each image, "instances" or "sem_seg"; the data sets have
            objects for the former, and the class of every pixel for the latter
        components: keys in REGISTRIES that name the parts of the model, each with the key that
            switches it on, or ""
        masks: key that says whether the model learns masks of objects, or ""
        mapper: class of what reads images and annotations, `mapper(cfg, is_train=...)`; None is
            that of the package for this output
        evaluators: evaluator type in a data set's Metadata -> function of the name of the data set
            and `output_dir`, which may also have the option `max_dets_per_image`, see
            `build_evaluator`; None are those of the package for this output
        augmentation: test-time augmentation, function of the config and the model, that returns
            what is evaluated in its place; None if there is none for such models
        augments_file: whether test-time augmentation makes its views from the image file, rather
            than from the image that is scaled for testing, as detectron2's does; function of the
            config
    Raises:
        ValueError: for an output or a component that is not known
    """

    architectures: tuple[Callable, ...]
    num_classes: str
    output: str = "instances"
    components: Mapping[str, str] = field(default_factory=dict)
    masks: str = ""
    mapper: Callable | None = None
    evaluators: Mapping[str, Callable] | None = None
    augmentation: Callable[[CfgNode, nn.Module], nn.Module] | None = None
    augments_file: Callable[[CfgNode], bool] = lambda cfg: False

    def __post_init__(self):
        if self.output not in ("instances", "sem_seg"):
            raise ValueError(f"Task.output is {self.output!r}, expected 'instances' or 'sem_seg'")
        if unknown := self.components.keys() - REGISTRIES.keys():
            raise ValueError(
                f"Task.components has {', '.join(sorted(unknown))}: expected some of "
                f"{', '.join(REGISTRIES)}"
            )
        finds_pixels = self.output == "sem_seg"
        if self.mapper is None:
            self.mapper = SemSegMapper if finds_pixels else CheckedDatasetMapper
        if self.evaluators is None:
            self.evaluators = PIXEL_EVALUATORS if finds_pixels else OBJECT_EVALUATORS

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

    def build_mapper(self, cfg: CfgNode, is_train: bool, **options):
        """The mapper, with options of it that replace what the config says."""
        if self.mapper is SemSegMapper:  # which compares the labels in a file with this number
            options["num_classes"] = value_of(cfg, self.num_classes)
        return self.mapper(cfg, is_train=is_train, **options)

    def build_evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        """
        The evaluator of a data set, whose Metadata has an evaluator type that this task knows. If
        the model may return more detections of an image than the 100 that count on COCO, evaluators
        with the option `max_dets_per_image`, as detectron2's COCOEvaluator has it, are told how
        many, unless the option has a default other than None. Those with the option
        `kpt_oks_sigmas` get TEST.KEYPOINT_OKS_SIGMAS.
        """
        evaluator = self.evaluators[MetadataCatalog.get(dataset_name).evaluator_type]
        options = {"output_dir": output_dir}
        parameters = inspect.signature(evaluator).parameters
        if cfg.MODEL.KEYPOINT_ON and "kpt_oks_sigmas" in parameters:
            options["kpt_oks_sigmas"] = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        limit = parameters.get("max_dets_per_image")
        detections = cfg.TEST.DETECTIONS_PER_IMAGE
        if limit is not None and limit.default is None and not 0 <= detections <= COCO_LIMIT:
            options["max_dets_per_image"] = detections if detections > 0 else ALL_DETECTIONS
        return evaluator(dataset_name, **options)


_RPN_PARTS = {
    "MODEL.BACKBONE.NAME": "",
    "MODEL.PROPOSAL_GENERATOR.NAME": "",
    "MODEL.RPN.HEAD_NAME": "",
    "MODEL.ANCHOR_GENERATOR.NAME": "",
}
_ROI_PARTS = {
    "MODEL.ROI_HEADS.NAME": "",
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_MASK_HEAD.NAME": "MODEL.MASK_ON",
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "MODEL.KEYPOINT_ON",
}

TASKS = [
    Task(
        architectures=(GeneralizedRCNN,),
        num_classes="MODEL.ROI_HEADS.NUM_CLASSES",
        components={**_RPN_PARTS, **_ROI_PARTS},
        masks="MODEL.MASK_ON",
        augmentation=MultiScaleTTA,
        augments_file=lambda cfg: cfg.TEST.AUG.MERGE == "raw",
    ),
    Task(architectures=(ProposalNetwork,), num_classes="", components=_RPN_PARTS),
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
        augmentation=SemSegTTA,
        augments_file=lambda cfg: True,
    ),
]


def register_task(task: Task) -> None:
    """Add a kind of model. Of several rows that name a class the latest one counts."""
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
