"""Small folders in the layout of Pascal VOC, and detections on them."""

import torch
from detectron2.structures import Boxes, Instances

from tests.voc_data import annotation_xml, object_xml, write_voc


def write_folder(folder, images):
    """images: id -> list of (class, difficult, box)"""
    texts = {
        image_id: annotation_xml(*(object_xml(name, box, hard) for name, hard, box in objects))
        for image_id, objects in images.items()
    }
    write_voc(folder, texts, list_file="ImageSets/Main/test.txt")


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
