"""Small files in the COCO format, and detections on them."""

import json

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from pycocotools import mask as run_lengths

SIZE = 200  # of all images


def polygon(box):
    """A rectangle (x, y, width, height) as COCO's masks are written."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def make_content(objects, num_classes=2, num_images=2):
    """objects: (image, category, box), images and categories from 1 on, boxes as in COCO."""
    return {
        "info": {},
        "images": [
            {"id": i + 1, "height": SIZE, "width": SIZE, "file_name": f"{i + 1}.jpg"}
            for i in range(num_images)
        ],
        "categories": [{"id": k + 1, "name": f"c{k + 1}"} for k in range(num_classes)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": category, "iscrowd": 0}
            | {"bbox": list(box), "area": box[2] * box[3], "segmentation": polygon(box)}
            for i, (image, category, box) in enumerate(objects)
        ],
    }


class Registered:
    """Registers contents of files under the name of a test, and forgets them at its end."""

    def __init__(self, folder):
        self.folder, self.names = folder, []

    def __call__(self, content) -> str:
        name = f"{self.folder.name}_{len(self.names)}"
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(self.folder))
        self.names.append(name)
        DatasetCatalog.get(name)  # sets the classes of the Metadata
        return name

    def forget(self):
        for name in self.names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def make_instances(found, masks=False):
    """found: (class index, score, box as in COCO) of one image -> what a model returns"""
    instances = Instances((SIZE, SIZE))
    boxes = torch.tensor([box for *_, box in found], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1))
    instances.scores = torch.tensor([score for _, score, _ in found], dtype=torch.float32)
    instances.pred_classes = torch.tensor([k for k, *_ in found], dtype=torch.int64)
    if masks:
        drawn = [run_lengths.frPyObjects(polygon(box), SIZE, SIZE)[0] for *_, box in found]
        drawn = [run_lengths.decode(mask) for mask in drawn]
        instances.pred_masks = torch.tensor(np.array(drawn).reshape(-1, SIZE, SIZE)).bool()
    return instances


def perfect(content):
    """Image id -> (class index, score, box) of every object."""
    found = {image["id"]: [] for image in content["images"]}
    for i, entry in enumerate(content["annotations"]):
        if entry["image_id"] in found:
            detection = (entry["category_id"] - 1, 0.9 - 0.001 * i, entry["bbox"])
            found[entry["image_id"]].append(detection)
    return found


def feed(evaluator, detections, masks=False):
    """detections: image id -> as in `make_instances`. Returns the evaluator."""
    evaluator.reset()
    for image, found in detections.items():
        evaluator.process([{"image_id": image}], [{"instances": make_instances(found, masks)}])
    return evaluator
