"""The data sets of a run, checked as a whole before anything is built."""

import functools
import os
from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from dcn_projects.config_keys import value_of
from dcn_projects.data import (
    check_datasets,
    check_labels,
    check_objects,
    check_pictures,
    check_widths,
    expected_paths,
    load_checked,
    loading,
)

from .check_config import check_classes, check_kind
from .tasks import task_of

__all__ = ["check_class_order", "check_data", "class_order"]


def check_data(cfg: CfgNode, to_learn: Iterable[str], to_evaluate: Iterable[str]) -> None:
    """
    Load data sets and look at all that a training or an evaluation reads of them: annotations,
    classes, the image files and the labels of pixels. What was found to be right is not looked at
    again in this process, as long as its files stay the same. One of several processes does
    nothing: the program that started them has checked the data.

    Args:
        to_learn, to_evaluate: names of registered data sets
    Raises:
        OSError: if a file cannot be used; one line that names it and the place in it
        ValueError: if the data are not those of the model
    """
    if comm.get_world_size() > 1:
        return
    for name, evaluated in [*((n, False) for n in to_learn), *((n, True) for n in to_evaluate)]:
        check_datasets([name])
        check_kind(cfg, name)
        needs, sides, stamps = _needs(cfg, name, evaluated), _sides(cfg, evaluated), _stamps(name)
        compare = check_class_order if evaluated else check_classes
        compare(cfg, name)  # names that are known already
        _check_once(name, DatasetCatalog[name], evaluated, needs, sides, stamps)
        compare(cfg, name)  # and those that the data set has itself


def check_class_order(cfg: CfgNode, name: str) -> None:
    """
    Args:
        name: of a registered data set to evaluate on
    Raises:
        ValueError: if its classes, as far as they are known, are not those of the model
    """
    if class_order(cfg, name) is None:
        check_classes(cfg, name)


def class_order(cfg: CfgNode, name: str) -> list[int] | None:
    """
    The classes of a data set by those of the model, which are the classes of DATASETS.TRAIN:
    entry k is the number in the data set of the model's class k, or -1 if the data set has no class
    of this name.

    Args:
        name: of a registered data set. It has no classes yet if they are in a file of it that was
            not loaded
    Returns:
        list, or None if the order is the same or is not known
    Raises:
        ValueError: if the data set has a class that the model does not have
    """
    task = task_of(cfg)
    names = MetadataCatalog.get(name).get(task.class_names)
    trained = None if names is None else _names_of_training(cfg, task)
    if trained is None or list(names) == trained:
        return None
    unknown = [n for n in names if n not in trained]
    if unknown or len({*names}) < len(names) or len({*trained}) < len(trained):
        what = f"the class {unknown[0]!r}" if unknown else "several classes of one name"
        raise ValueError(
            f"data set {name} has {what}, and the model's classes, those of DATASETS.TRAIN "
            f"{cfg.DATASETS.TRAIN[0]}, are {_listed(trained)}. Give both the same names, or name "
            "the data of the training in DATASETS.TRAIN"
        )
    if task.output == "sem_seg" and len(names) < len(trained):
        check_classes(cfg, name)
    return [list(names).index(n) if n in names else -1 for n in trained]


def _names_of_training(cfg: CfgNode, task) -> list[str] | None:
    """
    Those of DATASETS.TRAIN, if the data set is there and has as many as the model. An evaluation
    may be on another machine than the training, or of a config whose training data are others.
    """
    if not cfg.DATASETS.TRAIN or not task.num_classes:
        return None
    name = cfg.DATASETS.TRAIN[0]
    metadata = MetadataCatalog.get(name)
    if metadata.get(task.class_names) is None:
        if name not in DatasetCatalog.list() or not all(map(os.path.exists, expected_paths(name))):
            return None
        with loading([name]):
            DatasetCatalog.get(name)
    names = metadata.get(task.class_names)
    fits = names is not None and len(names) == value_of(cfg, task.num_classes)
    return list(names) if fits else None


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _needs(cfg: CfgNode, name: str, evaluated: bool) -> tuple:
    """What of a data set is read: arguments of `check_objects` and `check_labels`."""
    task, metadata = task_of(cfg), MetadataCatalog.get(name)
    num_classes = value_of(cfg, task.num_classes) if task.num_classes else None
    if task.output == "sem_seg":
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        return task.output, num_classes, metadata.get("ignore_label", ignored)
    masks = None
    if task.learns_masks(cfg):
        masks = "any" if evaluated else cfg.INPUT.MASK_FORMAT
    keypoints = None
    if not evaluated and cfg.MODEL.KEYPOINT_ON:
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    return task.output, num_classes, masks, keypoints


def _sides(cfg: CfgNode, evaluated: bool) -> tuple[int, int]:
    """Of images for the network: the short one, and the most that the long one may have."""
    if evaluated:
        return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return min(cfg.INPUT.MIN_SIZE_TRAIN, default=0), cfg.INPUT.MAX_SIZE_TRAIN


def _stamps(name: str) -> tuple:
    """When the files of a data set were changed."""
    paths = [path for path in expected_paths(name) if "://" not in path]
    return tuple((path, os.stat(PathManager.get_local_path(path)).st_mtime_ns) for path in paths)


@functools.lru_cache(maxsize=64)
def _check_once(
    name: str, load, evaluated: bool, needs: tuple, sides: tuple[int, int], stamps: tuple
) -> None:
    """`load` and `stamps` are there to tell a set from another one, or from its earlier state."""
    records = load_checked(name, evaluated)
    output, num_classes, *options = needs
    with loading([name]):
        if output == "sem_seg":
            check_labels(name, records, num_classes, *options)
        else:
            classes = MetadataCatalog.get(name).get("thing_classes")
            check_objects(name, records, len(classes) if classes else num_classes, *options)
        check_pictures(records)
        check_widths(name, records, *sides)
