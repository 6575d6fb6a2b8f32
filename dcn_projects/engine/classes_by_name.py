"""Classes of data sets, matched by their names with those of the model."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcn_projects.config_keys import value_of
from dcn_projects.data import expected_paths, loading

from .check_config import check_classes
from .tasks import Task, task_of

__all__ = ["check_class_order", "class_order"]


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


def _names_of_training(cfg: CfgNode, task: Task) -> list[str] | None:
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
