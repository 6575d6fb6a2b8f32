"""The data sets of a run, checked as a whole before anything is built."""

import os
from collections.abc import Iterable, Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from dcn_projects.checkpoint import read_pickle
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
from dcn_projects.data.images import limit_pixels

from .check_config import check_classes, check_kind
from .classes_by_name import check_class_order
from .tasks import task_of

__all__ = ["check_data"]


# Name of a data set, and whether it is evaluated on -> what it was like when it was right, and
# whether anything is there to be learnt.
_right: dict[tuple[str, bool], tuple[tuple, bool]] = {}


def check_data(cfg: CfgNode, to_learn: Iterable[str], to_evaluate: Iterable[str]) -> None:
    """
    Load data sets and look at all that a training or an evaluation reads of them: annotations,
    classes, the image files and the labels of pixels. What was found to be right is not looked at
    again in this process, as long as its files of annotations and lists, and what its folders hold,
    stay the same. Of several processes on a machine, only the one that starts the others does it,
    or the first of torchrun's.

    Args:
        to_learn, to_evaluate: names of registered data sets
    Raises:
        OSError: if a file cannot be used; one line that names it and the place in it
        ValueError: if the data are not those of the model
    """
    limit_pixels(cfg.INPUT.MAX_PIXELS)
    to_learn, to_evaluate = tuple(to_learn), tuple(to_evaluate)
    for key, names in (("TRAIN", to_learn), ("TEST", to_evaluate)):
        if cfg.MODEL.LOAD_PROPOSALS and names:
            _check_proposals(f"DATASETS.PROPOSAL_FILES_{key}", cfg)
    if comm.get_world_size() > 1 or os.getenv("LOCAL_RANK", "0") != "0":
        return
    to_train = {}  # data set -> whether it has an object that is learnt
    for name, evaluated in [*((n, False) for n in to_learn), *((n, True) for n in to_evaluate)]:
        check_datasets([name])
        check_kind(cfg, name)
        compare = check_class_order if evaluated else check_classes
        compare(cfg, name)  # names that are known already
        if _right.get((name, evaluated), (None, None))[0] != _state(cfg, name, evaluated):
            print(f"Checking the data set {name}.")  # loggers are not set up yet
            learnt = _check(cfg, name, evaluated)
            compare(cfg, name)  # and names that the data set has itself
            _right[name, evaluated] = _state(cfg, name, evaluated), learnt
        if not evaluated:
            _, to_train[name] = _right[name, evaluated]
    if to_train and not any(to_train.values()) and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        files = (str(MetadataCatalog.get(name).get("json_file") or name) for name in to_train)
        what = "no object with keypoints" if cfg.MODEL.KEYPOINT_ON else "no object"
        raise OSError(
            f"DATASETS.TRAIN {', '.join(files)}: {what} is there to be learnt in any image, "
            "besides crowds. Annotate some, or name other data"
        )


def _check_proposals(key: str, cfg: CfgNode) -> None:
    """detectron2 unpickles them, which can run anything. What can be read here cannot."""
    for path in value_of(cfg, key):
        try:
            content = read_pickle(PathManager.get_local_path(path))
        except ValueError as e:
            raise ValueError(f"{key}: {e}") from None
        if not isinstance(content, Mapping):
            raise ValueError(f"{key}: {path} holds no proposals, but a {type(content).__name__}")


def _check(cfg: CfgNode, name: str, evaluated: bool) -> bool:
    """Returns whether anything is there to be learnt."""
    records = load_checked(name, evaluated)
    output, num_classes, *options = _needs(cfg, name, evaluated)
    with loading([name]):
        if output == "sem_seg":
            check_labels(name, records, num_classes, *options)
        else:
            classes = MetadataCatalog.get(name).get("thing_classes")
            *options, min_keypoints = options
            check_objects(name, records, len(classes) if classes else num_classes, *options)
        check_pictures(records)
        check_widths(name, records, *_sides(cfg, evaluated))
    if output == "sem_seg" or evaluated:
        return True
    return any(_has_objects(record, min_keypoints) for record in records)


def _state(cfg: CfgNode, name: str, evaluated: bool) -> tuple:
    """What a check depends on: another state has to be checked anew."""
    paths = [path for path in expected_paths(name) if "://" not in path]
    stamps = [(path, _changed(PathManager.get_local_path(path))) for path in paths]
    needs = _needs(cfg, name, evaluated), _sides(cfg, evaluated), cfg.INPUT.MAX_PIXELS
    names = MetadataCatalog.get(name).get(task_of(cfg).class_names)
    return DatasetCatalog[name], needs, names, stamps


def _changed(path: str) -> int:
    """When a file was changed, or a folder: of one of annotations, also a file in it."""
    times = [os.stat(path).st_mtime_ns]
    if os.path.basename(path.rstrip("/")).lower() == "annotations":
        times += [entry.stat().st_mtime_ns for entry in os.scandir(path)]
    return max(times)


def _has_objects(record: Mapping, min_keypoints: int) -> bool:
    """Whether detectron2 trains on an image, and does not leave it out."""
    objects = record["annotations"]
    if min_keypoints:
        seen = [np.ravel(entry.get("keypoints", ()))[2::3] > 0 for entry in objects]
        if np.concatenate([*seen, []]).sum() < min_keypoints:
            return False
    return any(entry.get("iscrowd", 0) == 0 for entry in objects)


def _needs(cfg: CfgNode, name: str, evaluated: bool) -> tuple:
    """
    What of a data set is read: arguments of `check_labels`, or of `check_objects` and last the
    number of keypoints without which an image is not learnt.
    """
    task, metadata = task_of(cfg), MetadataCatalog.get(name)
    num_classes = value_of(cfg, task.num_classes) if task.num_classes else None
    if task.output == "sem_seg":
        ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE  # a training reads with it
        label = metadata.get("ignore_label", ignored) if evaluated else ignored
        return task.output, num_classes, label
    masks = None
    if task.learns_masks(cfg) and not evaluated:
        masks = cfg.INPUT.MASK_FORMAT
    elif task.learns_masks(cfg) and metadata.get("evaluator_type") != "pascal_voc":  # boxes alone
        masks = "any"
    keypoints = None
    min_keypoints = 0
    if cfg.MODEL.KEYPOINT_ON:
        head = cfg.MODEL.ROI_KEYPOINT_HEAD
        keypoints, min_keypoints = head.NUM_KEYPOINTS, head.MIN_KEYPOINTS_PER_IMAGE
    return task.output, num_classes, masks, keypoints, evaluated, min_keypoints


def _sides(cfg: CfgNode, evaluated: bool) -> tuple[int, int]:
    """Of images for the network: the short one, and the most that the long one may have."""
    if evaluated:
        return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return min(cfg.INPUT.MIN_SIZE_TRAIN, default=0), cfg.INPUT.MAX_SIZE_TRAIN
