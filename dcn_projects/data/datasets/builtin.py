"""
Data sets that detectron2 does not register.

Their files lie under the folder DETECTRON2_DATASETS, or "datasets" where that is not set.

- `digits_coco_*`, `digits_voc_*`, `digits_cityscapes_*`: warped digits, from tools/make_dataset.py.
  In the Cityscapes layout the classes are Cityscapes' own, see `CityscapesLayout`. With `_hard`
  behind the layout's name they are deformed twice as much.
- `voc_*_easy`: Pascal VOC without its difficult objects, on which the original R-FCN trains.
- `voc_2012_*_sem_seg`, `digits_voc_*sem_seg_*`: classes of pixels, the background first. "trainaug"
  is VOC 2012 train with SBD, in one of three forms: of the original files, of the PNGs in
  SegmentationClassAug (`_png`), or of PNGs merged into SegmentationClass with the list of the MXNet
  code of DeepLab (`_mxnet`).
- `cityscapes_fine_label_ids_*`: Cityscapes from the files that are downloaded.
"""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_semantic,
)
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from .cityscapes import load_cityscapes_label_ids
from .pascal_voc import register_pascal_voc
from .sbd import load_voc_sbd_sem_seg
from .voc_seg import SEG_CLASSES, load_voc_sem_seg, voc_palette

ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
DIGIT_CLASSES = tuple("0123456789")
RECIPE_FILE = "recipe.json"  # appears in a folder of digits when everything else is there

DEGREES = ("", "_hard")  # of deformation

# name: (image folder, annotations)
COCO = {
    f"digits_coco{degree}_{split}": (
        f"digits_coco{degree}/{split}",
        f"digits_coco{degree}/annotations/instances_{split}.json",
    )
    for degree in DEGREES
    for split in ("train", "test")
}
# name: (class names, folder, split, year of the metric, whether with difficult objects)
VOC = {
    f"digits_voc{degree}_{split}": (
        DIGIT_CLASSES, f"digits_voc{degree}/VOCdevkit/VOC2012", split, 2012, True
    )
    for degree in DEGREES
    for split in ("train", "test")
} | {
    f"voc_{year}_trainval_easy": (CLASS_NAMES, f"VOC{year}", "trainval", year, False)
    for year in (2007, 2012)
}  # fmt: skip
# name: (image folder, annotation folder, task)
CITYSCAPES = {
    f"digits_cityscapes{degree}_{task}_{split}": (
        f"digits_cityscapes{degree}/leftImg8bit/{split}/",
        f"digits_cityscapes{degree}/gtFine/{split}/",
        task,
    )
    for degree in DEGREES
    for task in ("instance_seg", "sem_seg")
    for split in ("train", "val")
}  # fmt: skip
# name: (image folder, annotation folder)
CITYSCAPES_LABEL_IDS = {
    f"cityscapes_fine_label_ids_{split}": (
        f"cityscapes/leftImg8bit/{split}/", f"cityscapes/gtFine/{split}/"
    )
    for split in ("train", "val")
}  # fmt: skip
# name: (folder, list of images, label folder, class names)
VOC_SEM_SEG = {
    f"digits_voc{degree}_sem_seg_{split}": (
        f"digits_voc{degree}/VOCdevkit/VOC2012",
        f"ImageSets/Segmentation/{split}.txt",
        "SegmentationClass",
        ("background", *DIGIT_CLASSES),
    )
    for degree in DEGREES
    for split in ("train", "test")
} | {
    f"voc_2012_{name}_sem_seg": ("VOC2012", f"ImageSets/{image_list}.txt", labels, SEG_CLASSES)
    for name, image_list, labels in (
        ("train", "Segmentation/train", "SegmentationClass"),
        ("val", "Segmentation/val", "SegmentationClass"),
        ("trainaug_png", "Segmentation/trainaug", "SegmentationClassAug"),
        ("trainaug_mxnet", "Main/train_seg", "SegmentationClass"),
    )
}
VOC_SBD = "voc_2012_trainaug_sem_seg"  # files in VOC2012 and SBD
IGNORE_LABEL = 255
CITYSCAPES_COLORS = [category["color"] for category in CITYSCAPES_CATEGORIES]


def register_all(root: str):
    """Register every data set of the tables above, with its files under the folder `root`."""
    for name, (images, annotations) in COCO.items():
        metadata = {"thing_classes": list(DIGIT_CLASSES)}
        files = os.path.join(root, annotations), os.path.join(root, images)
        register_coco_instances(name, metadata, *files)
    for name, (class_names, folder, split, year, difficult) in VOC.items():
        dirname = os.path.join(root, folder)
        register_pascal_voc(name, class_names, dirname, split, year, difficult=difficult)
    for name, (images, annotations, task) in CITYSCAPES.items():
        _register_cityscapes(
            name, os.path.join(root, images), os.path.join(root, annotations), task
        )
    for name, (images, annotations) in CITYSCAPES_LABEL_IDS.items():
        _register_cityscapes_label_ids(
            name, os.path.join(root, images), os.path.join(root, annotations)
        )
    for name, (folder, *entry) in VOC_SEM_SEG.items():
        _register_voc_sem_seg(name, os.path.join(root, folder), *entry)
    _register_voc_sbd(VOC_SBD, os.path.join(root, "VOC2012"), os.path.join(root, "SBD"))
    for name in (*COCO, *VOC, *CITYSCAPES, *VOC_SEM_SEG):
        if name.startswith("digits_"):
            folder = "_".join(name.split("_")[: 3 if "_hard" in name else 2])
            MetadataCatalog.get(name).recipe_file = os.path.join(root, folder, RECIPE_FILE)


def _register_cityscapes(name, image_dir, gt_dir, task):
    cityscapes = MetadataCatalog.get(f"cityscapes_fine_{task}_val")
    meta = MetadataCatalog.get(name).set(
        thing_classes=cityscapes.thing_classes,
        stuff_classes=cityscapes.stuff_classes,
        image_dir=image_dir,
        gt_dir=gt_dir,
        evaluator_type=cityscapes.evaluator_type,
    )
    if task == "instance_seg":
        # From the polygons, as detectron2 reads Cityscapes: what it makes of the PNGs is smaller by
        # half a pixel all around.
        DatasetCatalog.register(
            name, lambda: load_cityscapes_instances(image_dir, gt_dir, from_json=True)
        )
    else:
        meta.set(ignore_label=IGNORE_LABEL, stuff_colors=CITYSCAPES_COLORS)
        DatasetCatalog.register(name, lambda: load_cityscapes_semantic(image_dir, gt_dir))


def _register_cityscapes_label_ids(name, image_dir, gt_dir):
    DatasetCatalog.register(name, lambda: load_cityscapes_label_ids(image_dir, gt_dir))
    MetadataCatalog.get(name).set(
        stuff_classes=[category["name"] for category in CITYSCAPES_CATEGORIES],
        stuff_colors=CITYSCAPES_COLORS,
        image_dir=image_dir,
        gt_dir=gt_dir,
        ignore_label=IGNORE_LABEL,
        evaluator_type="cityscapes_sem_seg",
    )


def _register_voc_sem_seg(name, dirname, image_list, label_folder, class_names):
    DatasetCatalog.register(name, lambda: load_voc_sem_seg(dirname, image_list, label_folder))
    MetadataCatalog.get(name).set(
        stuff_classes=list(class_names),
        stuff_colors=voc_palette(len(class_names)),
        image_list=os.path.join(dirname, image_list),
        image_root=os.path.join(dirname, "JPEGImages"),
        sem_seg_root=os.path.join(dirname, label_folder),
        ignore_label=IGNORE_LABEL,
        evaluator_type="sem_seg",
    )


def _register_voc_sbd(name, voc_dir, sbd_dir):
    DatasetCatalog.register(name, lambda: load_voc_sbd_sem_seg(voc_dir, sbd_dir))
    MetadataCatalog.get(name).set(
        stuff_classes=list(SEG_CLASSES),
        stuff_colors=voc_palette(len(SEG_CLASSES)),
        image_list=os.path.join(sbd_dir, "train.txt"),
        image_root=os.path.join(sbd_dir, "img"),
        sem_seg_root=os.path.join(sbd_dir, "cls"),
        voc_root=os.path.join(voc_dir, "SegmentationClass"),
        ignore_label=IGNORE_LABEL,
        evaluator_type="sem_seg",
    )


register_all(ROOT)
