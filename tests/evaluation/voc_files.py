"""Small folders in the layout of Pascal VOC, and detections on them."""

import xml.etree.ElementTree as ET

import torch
from detectron2.structures import Boxes, Instances


def write_folder(folder, images):
    """images: id -> list of (class, difficult, box)"""
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{i}\n" for i in images))
    for image_id, objects in images.items():
        root = ET.Element("annotation")
        for name, difficult, box in objects:
            element = ET.SubElement(root, "object")
            fields = {"name": name, "pose": "", "truncated": "0", "difficult": str(difficult)}
            for tag, text in fields.items():
                ET.SubElement(element, tag).text = text
            bndbox = ET.SubElement(element, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box):
                ET.SubElement(bndbox, tag).text = str(value)
        ET.ElementTree(root).write(folder / f"Annotations/{image_id}.xml")


def feed_voc(evaluator, detections):
    """detections: image id -> list of (class index, score, box as in the XML)"""
    evaluator.reset()
    for image_id, found in detections.items():
        instances = Instances((100, 100))
        boxes = torch.tensor([box for _, _, box in found], dtype=torch.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(boxes - torch.tensor([1.0, 1, 0, 0]))
        instances.scores = torch.tensor([score for _, score, _ in found])
        instances.pred_classes = torch.tensor([k for k, _, _ in found], dtype=torch.int64)
        image = {"image_id": image_id, "width": 100, "height": 100}
        evaluator.process([image], [{"instances": instances}])
    return evaluator.evaluate()
