"""What a config asks for and cannot have, found before anything is built or read."""

import logging
from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from dcn_projects.config import add_dcn_config, checks_of, keys_read_by
from dcn_projects.config_keys import leaves, value_of
from dcn_projects.errors import one_line
from dcn_projects.modeling import meta_architecture
from dcn_projects.modeling.test_time_augmentation import augmentation_options

from .tasks import REGISTRIES, TASKS, task_of

__all__ = [
    "check_augmentation",
    "check_classes",
    "check_evaluators",
    "check_keypoints",
    "check_keys",
    "check_kind",
    "check_preprocessing",
    "check_training",
]

# Keys of this project, and groups of them, that are read whatever the model is.
READ_BY_ENGINE = ("INPUT", "SOLVER", "DATALOADER", "MODEL.DEFORMABLE")
AUGMENTATION = "TEST.AUG"
# Keys of detectron2 with values of this project, which only components that declare them know.
POOLERS = ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "MODEL.ROI_MASK_HEAD.POOLER_TYPE")
OF_COCO = 17  # keypoints of a person
POOLERS_OF_DETECTRON2 = ("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated", "")


def check_keys(cfg: CfgNode) -> None:
    """
    Components declare with `dcn_projects.config.reads` which keys of this project they read, and
    how their values are checked. Keys that differ from their defaults must be among them, and so
    must those of classes of the user's own: otherwise a key would be ignored silently, and a model
    trained that was not meant. Options of a part that is switched off are allowed.

    Raises:
        ValueError: naming keys that no component of the model reads, and components that do; for a
            value that a component cannot use; or if the config asks for test-time augmentation, and
            there is none for such a model
        KeyError: if a component is not registered
    """
    task = task_of(cfg)
    declared = set(READ_BY_ENGINE)
    if task.augmentation is not None:
        declared.add(AUGMENTATION)
    elif cfg.TEST.AUG.ENABLED:
        raise ValueError(
            f"TEST.AUG.ENABLED: there is no test-time augmentation for models such as "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}. Make it False"
        )
    components = list(_components(cfg))
    for component in components:
        declared |= keys_read_by(component)
    unread = {k: v for k, v in _changed_keys(cfg).items() if not _is_below(k, declared)}
    if unread:
        _refuse(cfg, unread)
    for component in components:
        for check in checks_of(component):
            check(cfg)
    if cfg.INPUT.MAX_PIXELS < 1:
        raise ValueError(f"INPUT.MAX_PIXELS must be 1 or more, got {cfg.INPUT.MAX_PIXELS}")
    if cfg.TEST.AUG.ENABLED:
        augmentation_options(cfg)


def check_augmentation(cfg: CfgNode, model: nn.Module) -> None:
    """
    Make the test-time augmentation of a model, which shows whether it can be made.

    Raises:
        ValueError: if it cannot
    """
    if cfg.TEST.AUG.ENABLED:
        try:
            task_of(cfg).augmentation(cfg, model)
        except (AssertionError, TypeError) as e:  # detectron2 asserts
            raise ValueError(f"TEST.AUG: {one_line(e)}") from e


def _components(cfg: CfgNode) -> Iterator[object]:
    """The classes and functions that the model is made of."""
    yield meta_architecture(cfg)
    for key, switch in task_of(cfg).components.items():
        name = value_of(cfg, key)
        if not name or name == "PrecomputedProposals" or switch and not value_of(cfg, switch):
            continue
        yield REGISTRIES[key].get(name)


def _changed_keys(cfg: CfgNode) -> dict[str, object]:
    """Keys of this project that differ from their defaults, with their values."""
    detectron2, ours = get_cfg(), get_cfg()
    add_deeplab_config(detectron2)
    add_dcn_config(ours)
    known, given = dict(leaves(detectron2)), dict(leaves(cfg))
    changed = {
        key: given[key]
        for key, default in leaves(ours)
        if key not in known and given[key] != default
    }
    poolers = POOLERS if cfg.MODEL.MASK_ON else POOLERS[:1]
    return changed | {k: given[k] for k in poolers if given[k] not in POOLERS_OF_DETECTRON2}


def _is_below(key: str, groups: Iterable[str]) -> bool:
    return any(key == group or key.startswith(group + ".") for group in groups)


def _refuse(cfg: CfgNode, unread: dict[str, object]) -> None:
    settings = ", ".join(f"{key} {value}" for key, value in unread.items())
    chosen = ", ".join(
        f"{key} {value_of(cfg, key)}"
        for key in ("MODEL.META_ARCHITECTURE", *task_of(cfg).components)
        if key.endswith(("ARCHITECTURE", "HEADS.NAME"))
    )
    # Of all these keys, else of the first that anything reads.
    hint = next(filter(None, map(_readers, [list(unread), *([key] for key in unread)])), {})
    advice = " and ".join(f"{key} {' or '.join(names)}" for key, names in hint.items())
    raise ValueError(
        f"no part of the model ({chosen}) reads {settings}"
        + (f". Such keys are read with {advice}" if advice else ". Take them out")
    )


def _readers(keys: Iterable[str]) -> dict[str, list[str]]:
    """Key of a component -> names of those that read all of the keys."""
    readers = {}
    for named_by, registry in REGISTRIES.items():
        for name, component in registry:
            if all(_is_below(key, keys_read_by(component)) for key in keys):
                readers.setdefault(named_by, []).append(name)
    return {named_by: sorted(names) for named_by, names in readers.items()}


def check_training(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: for values with which detectron2's trainer would fail later, with an error that
            does not name them
    """
    positive = {
        "MAX_ITER": cfg.SOLVER.MAX_ITER,
        "CHECKPOINT_PERIOD": cfg.SOLVER.CHECKPOINT_PERIOD,
        "IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
    }
    for key, value in positive.items():
        if value < 1:
            raise ValueError(f"SOLVER.{key} is {value}, expected 1 or more")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}, expected 0 or more"
        )
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ValueError("INPUT.MIN_SIZE_TRAIN is empty: give the short side of the images")
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.ENABLED: detectron2's mixed precision needs a GPU")


def check_preprocessing(cfg: CfgNode) -> None:
    """
    Warns if the ImageNet weights that training starts from were trained with other pixels or
    another stride: the model still learns, but reaches a lower accuracy.
    """
    if "ImageNetPretrained/MSRA/" not in cfg.MODEL.WEIGHTS:
        return
    expected = {"PIXEL_STD": [1.0] * 3, "RESNETS.STRIDE_IN_1X1": True}
    actual = {
        "PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "RESNETS.STRIDE_IN_1X1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }
    for key, value in expected.items():
        if actual[key] != value:
            logging.getLogger(__name__).warning(
                f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} were trained with MODEL.{key} {value}, and it "
                f"is {actual[key]}"
            )


def check_kind(cfg: CfgNode, name: str) -> None:
    """
    Args:
        name: of a registered data set
    Raises:
        ValueError: if it, as far as it is known, is for models of another kind
    """
    task = task_of(cfg)
    of_others = {
        kind for other in TASKS if other.output != task.output for kind in other.evaluators
    }
    if MetadataCatalog.get(name).get("evaluator_type") in of_others - task.evaluators.keys():
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} finds {task.finds}, which "
            f"data set {name} does not have"
        )


def check_classes(cfg: CfgNode, name: str) -> None:
    """
    Args:
        name: of a registered data set
    Raises:
        ValueError: if it, as far as it is known, has another number of classes than the model
    """
    task = task_of(cfg)
    expected = value_of(cfg, task.num_classes) if task.num_classes else None
    classes = MetadataCatalog.get(name).get(task.class_names)
    if None not in (classes, expected) and len(classes) != expected:
        raise ValueError(
            f"{task.num_classes} is {expected}, but data set {name} has {len(classes)} classes"
        )


def check_keypoints(cfg: CfgNode, names: Iterable[str]) -> None:
    """
    Args:
        names: of registered data sets
    Raises:
        ValueError: if keypoints are found, and one of the data sets has none, or another number of
            them, or TEST.KEYPOINT_OKS_SIGMAS has, or there is no data set of training, from which
            detectron2 takes their names
    """
    if not cfg.MODEL.KEYPOINT_ON or task_of(cfg).output != "instances":
        return
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "MODEL.KEYPOINT_ON: the names of the keypoints are those of DATASETS.TRAIN, which is "
            "empty. Name the data set of the training, also to evaluate"
        )
    expected = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *names)):
        metadata = MetadataCatalog.get(name)
        for key in ("keypoint_names", "keypoint_flip_map"):
            if metadata.get(key) is None:
                raise ValueError(
                    f"MODEL.KEYPOINT_ON is True, but data set {name} has no {key} in its Metadata. "
                    "Take data with keypoints, or make it False"
                )
        if len(metadata.keypoint_names) != expected:
            raise ValueError(
                f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {expected}, but data set {name} has "
                f"{len(metadata.keypoint_names)} keypoints"
            )
    sigmas = len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or OF_COCO
    if cfg.DATASETS.TEST and sigmas != expected:
        raise ValueError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} numbers, those of COCO if it is empty, and "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {expected}: give one for each keypoint, "
            "such as 0.05"
        )


def check_evaluators(cfg: CfgNode, needed: str | None = None) -> None:
    """
    Args:
        needed: evaluator type that all data sets must have; None for any
    Raises:
        ValueError: if a data set of DATASETS.TEST cannot be evaluated, or not in that way
    """
    for name in cfg.DATASETS.TEST:
        evaluator = MetadataCatalog.get(name).get("evaluator_type")
        if evaluator not in task_of(cfg).evaluators:
            known = " or ".join(sorted(task_of(cfg).evaluators))
            raise ValueError(
                f"DATASETS.TEST: there is no evaluator for {name}. Set evaluator_type in its "
                f"Metadata to {known}"
            )
        if evaluator == "sem_seg":
            _check_pixel_metadata(name)
        if needed and evaluator != needed:
            raise ValueError(f"--evaluate: {name} is not evaluated as COCO is. Take --eval-only")


def _check_pixel_metadata(name: str) -> None:
    """What the evaluator of classes of pixels reads."""
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes"):
        raise ValueError(
            f"data set {name} has no stuff_classes in its Metadata, the names of the classes"
        )
    ignored = metadata.get("ignore_label")
    if ignored not in range(256):
        raise ValueError(
            f"data set {name} has the ignore_label {ignored} in its Metadata, expected a number "
            "from 0 to 255, as pixels without a class have it in the label files"
        )
