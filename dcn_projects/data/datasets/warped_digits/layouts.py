"""
Write pictures of digits as COCO, Pascal VOC or Cityscapes are laid out on disk.

A layout has `add(split, index, scene)` for every picture, and `close()`, which writes what lists
the pictures. The files hold no dates: the same scenes give the same bytes.
"""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..builtin import DIGIT_CLASSES
from ..voc_seg import voc_palette
from .masks import mask_to_polygons, mask_to_rle, outline, tight_box
from .scenes import SPLITS, Scene


class CocoLayout:
    """
    {train,test}/000000.jpg and annotations/instances_{train,test}.json. The categories 1..10 are
    the digits 0..9, boxes are tight around the visible pixels.
    """

    def __init__(self, root: Path, masks: str):
        """
        Args:
            masks: "polygon" or "rle"
        """
        self.root = root
        self.encode = {"polygon": mask_to_polygons, "rle": mask_to_rle}[masks]
        self.images = {split: [] for split in SPLITS}
        self.annotations = {split: [] for split in SPLITS}

    def add(self, split: str, index: int, scene: Scene):
        name, (height, width) = f"{index:06d}.jpg", scene.image.shape[:2]
        _save(scene.image, self.root / split / name, quality=92)
        image = {"id": index, "file_name": name, "width": width, "height": height}
        self.images[split].append(image)
        for digit in scene.digits:
            x0, y0, x1, y1 = tight_box(digit.visible)
            annotation = {
                "id": len(self.annotations[split]) + 1,
                "image_id": index,
                "category_id": digit.label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(digit.visible.sum()),
                "iscrowd": 0,
                "segmentation": self.encode(digit.visible),
            }
            self.annotations[split].append(annotation)

    def close(self):
        for split in SPLITS:
            content = {
                "info": {"description": "Warped digits"},
                "licenses": [],
                "categories": [
                    {"id": k + 1, "name": name, "supercategory": "digit"}
                    for k, name in enumerate(DIGIT_CLASSES)
                ],
                "images": self.images[split],
                "annotations": self.annotations[split],
            }
            _write_json(self.root / f"annotations/instances_{split}.json", content)


class VocLayout:
    """
    VOCdevkit/VOC2012 with JPEGImages, Annotations, ImageSets/{Main,Segmentation}/{train,test}.txt,
    SegmentationClass and SegmentationObject. Boxes are 1-based and inclusive. In the palette PNGs 0
    is the background, 1..10 are the digits 0..9 (or the objects in the order of the XML), 255 is a
    border of one pixel on either side of an outline.
    """

    DIFFICULT_HIDDEN = 0.25  # "difficult" is a digit of which more than this share is hidden

    def __init__(self, root: Path):
        self.root = root / "VOCdevkit" / "VOC2012"
        self.names = {split: [] for split in SPLITS}

    def add(self, split: str, index: int, scene: Scene):
        name = f"{split}_{index:06d}"
        self.names[split].append(name)
        _save(scene.image, self.root / f"JPEGImages/{name}.jpg", quality=92)
        _write(self.root / f"Annotations/{name}.xml", self._xml(name, scene))

        objects = np.zeros(scene.image.shape[:2], np.uint8)
        classes = np.zeros_like(objects)
        for k, digit in enumerate(scene.digits):
            objects[digit.visible] = k + 1
            classes[digit.visible] = digit.label + 1
        neighbours = np.ones((3, 3), np.uint8)
        border = cv2.dilate(objects, neighbours) != cv2.erode(objects, neighbours)
        for folder, labels in ("SegmentationObject", objects), ("SegmentationClass", classes):
            labels[border] = 255
            _save(labels, self.root / folder / f"{name}.png", palette=voc_palette())

    def close(self):
        for split, names in self.names.items():
            for task in "Main", "Segmentation":
                _write(self.root / f"ImageSets/{task}/{split}.txt", "\n".join(names) + "\n")

    def _xml(self, name: str, scene: Scene) -> str:
        height, width = scene.image.shape[:2]
        root = ET.Element("annotation")
        _add_texts(root, folder="VOC2012", filename=f"{name}.jpg")
        _add_texts(ET.SubElement(root, "source"), database="Warped digits")
        _add_texts(ET.SubElement(root, "size"), width=width, height=height, depth=3)
        _add_texts(root, segmented=1)
        for digit in scene.digits:
            x0, y0, x1, y1 = tight_box(digit.visible)
            element = ET.SubElement(root, "object")
            _add_texts(
                element,
                name=DIGIT_CLASSES[digit.label],
                pose="Unspecified",
                truncated=int(x0 == 0 or y0 == 0 or x1 == width or y1 == height),
                occluded=int((digit.mask != digit.visible).any()),
                difficult=int(digit.hidden > self.DIFFICULT_HIDDEN),
            )
            box = ET.SubElement(element, "bndbox")
            _add_texts(box, xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
        ET.indent(root, "\t")
        return ET.tostring(root, encoding="unicode") + "\n"


class CityscapesLayout:
    """
    leftImg8bit/{train,val}/digits/*_leftImg8bit.png, and under gtFine *_polygons.json,
    *_instanceIds.png, *_labelIds.png and *_labelTrainIds.png.

    The labels are those of Cityscapes, so that its tools and detectron2's loaders read the files:
    digit d has the id 24 + d, which are the ten labels with instances, and the background is
    "building". Cityscapes trains and evaluates eight of the ten: its "caravan" and "trailer", here
    the digits 5 and 6, are void. As in Cityscapes, objects have no holes (what is seen through them
    belongs to them), and an object that another one cuts in parts is one instance.
    """

    # label, id, train id
    BACKGROUND = ("building", 11, 2)
    DIGITS = (
        ("person", 24, 11),
        ("rider", 25, 12),
        ("car", 26, 13),
        ("truck", 27, 14),
        ("bus", 28, 15),
        ("caravan", 29, 255),
        ("trailer", 30, 255),
        ("train", 31, 16),
        ("motorcycle", 32, 17),
        ("bicycle", 33, 18),
    )

    def __init__(self, root: Path):
        self.root = root
        self.train_ids = np.full(256, 255, np.uint8)
        for _, label_id, train_id in (self.BACKGROUND, *self.DIGITS):
            self.train_ids[label_id] = train_id

    def add(self, split: str, index: int, scene: Scene):
        height, width = scene.image.shape[:2]
        corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
        objects = [{"label": self.BACKGROUND[0], "polygon": corners}]
        canvas = Image.new("I", (width, height), self.BACKGROUND[1])
        count = [0] * 10
        for digit in scene.digits:
            name, label_id, _ = self.DIGITS[digit.label]
            polygon = outline(digit.mask).tolist()
            objects.append({"label": name, "polygon": polygon})
            # Cityscapes' own tools paint with ImageDraw, too, which fills with the border.
            instance_id = label_id * 1000 + count[digit.label]
            ImageDraw.Draw(canvas).polygon([tuple(point) for point in polygon], fill=instance_id)
            count[digit.label] += 1
        instance_ids = np.asarray(canvas).astype(np.uint16)
        label_ids = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000)

        place = f"{'train' if split == 'train' else 'val'}/digits/digits_{index:06d}_000000"
        _save(scene.image, self.root / f"leftImg8bit/{place}_leftImg8bit.png")
        gt = f"{self.root}/gtFine/{place}_gtFine"
        _save(instance_ids, Path(gt + "_instanceIds.png"))
        _save(label_ids.astype(np.uint8), Path(gt + "_labelIds.png"))
        _save(self.train_ids[label_ids], Path(gt + "_labelTrainIds.png"))
        content = {"imgHeight": height, "imgWidth": width, "objects": objects}
        _write_json(Path(gt + "_polygons.json"), content)

    def close(self):
        """Nothing to do: Cityscapes lists its images by its folders."""


LAYOUTS = {"coco": CocoLayout, "voc": VocLayout, "cityscapes": CityscapesLayout}


def _add_texts(parent: ET.Element, **texts):
    for tag, text in texts.items():
        ET.SubElement(parent, tag).text = str(text)


def _save(pixels: np.ndarray, path: Path, palette: list | None = None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.ravel(palette).tolist())
    image.save(path, **options)


def _write(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _write_json(path: Path, content: dict):
    _write(path, json.dumps(content, separators=(",", ":")))
