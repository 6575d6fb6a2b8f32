import os
import shutil
from pathlib import Path

from dcn_projects.whole_files import whole_file

__all__ = ["copy_detections", "inference_folder"]


def inference_folder(cfg, dataset_name: str) -> str:
    """Where an evaluation writes what is detected on a data set: each of several has a folder."""
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return os.path.join(folder, dataset_name) if len(cfg.DATASETS.TEST) > 1 else folder


def copy_detections(cfg, target: Path) -> None:
    """
    Copy what an evaluation of the data sets DATASETS.TEST, all in the COCO format, has written.

    Args:
        target: file in the format of COCO's results: a list of image_id, category_id, score, bbox
            (x, y, width, height) and, of masks, segmentation (run lengths). If there are several
            data sets, each has its own file, with its name before the suffix:
            FILE-coco_2017_val.json
    Raises:
        OSError: if a file cannot be read or written
    """
    for name in cfg.DATASETS.TEST:
        several = len(cfg.DATASETS.TEST) > 1
        path = target.with_stem(f"{target.stem}-{name}") if several else target
        source = os.path.join(inference_folder(cfg, name), "coco_instances_results.json")
        with open(source, "rb") as detections, whole_file(path) as file:
            shutil.copyfileobj(detections, file)
        print(f"The detections on {name} are in {path}.")
