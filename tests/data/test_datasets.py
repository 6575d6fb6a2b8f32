"""The data sets on disk, through detectron2's own loaders and evaluators."""

import collections
import json
import xml.etree.ElementTree as ET

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_voc_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from scipy.ndimage import binary_fill_holes

from dcn_projects.data import check_datasets
from dcn_projects.data.datasets.pascal_voc import load_voc
from dcn_projects.data.datasets.warped_digits import make_dataset

COUNTS = {"count_train": 3, "count_test": 25}


@pytest.fixture(scope="module", autouse=True)
def digits(root):
    """The folder of all three layouts."""
    for format in "coco", "voc", "cityscapes":
        make_dataset(root / f"digits_{format}", format, size=128, **COUNTS)
    return root


def file_name(record):
    return record["file_name"]


def corner_boxes(record):
    return [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]


def perfect_output(record, with_masks=False):
    """The ground truth of a dataset dict as a model's output."""
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(corner_boxes(record), dtype=torch.float32))
    instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
    instances.scores = torch.ones(len(instances))
    if with_masks:
        size = record["height"], record["width"]
        rles = [
            mask_util.merge(mask_util.frPyObjects(a["segmentation"], *size))
            for a in record["annotations"]
        ]
        instances.pred_masks = torch.tensor(np.stack([mask_util.decode(rle) for rle in rles]) > 0)
    return {"instances": instances}


def test_coco_boxes_are_tight_and_perfect_predictions_reach_ap_100(digits):
    check_datasets(["digits_coco_train", "digits_coco_test"])
    assert len(DatasetCatalog.get("digits_coco_train")) == 3
    dicts = DatasetCatalog.get("digits_coco_test")
    assert MetadataCatalog.get("digits_coco_test").thing_classes == list("0123456789")
    evaluator = COCOEvaluator(
        "digits_coco_test", ("bbox", "segm"), distributed=False, use_fast_impl=False
    )
    evaluator.reset()
    assert len(dicts) == 25
    for record in dicts:
        assert Image.open(record["file_name"]).size == (record["width"], record["height"])
        output = perfect_output(record, with_masks=True)
        for box, mask in zip(corner_boxes(record), output["instances"].pred_masks, strict=True):
            y, x = np.nonzero(mask.numpy())
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        evaluator.process([record], [output])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_run_lengths_tell_the_same_masks(digits, tmp_path):
    make_dataset(tmp_path, "coco", size=128, masks="rle", **COUNTS)
    polygons, rles = (
        json.loads((folder / "annotations/instances_train.json").read_text())["annotations"]
        for folder in (digits / "digits_coco", tmp_path)
    )
    assert len(polygons) == len(rles) > 0
    for polygon, rle in zip(polygons, rles, strict=True):
        assert polygon["bbox"] == rle["bbox"] == mask_util.toBbox(rle["segmentation"]).tolist()
        assert polygon["area"] == rle["area"] == mask_util.area(rle["segmentation"])
        merged = mask_util.merge(mask_util.frPyObjects(polygon["segmentation"], 128, 128))
        assert mask_util.iou([merged], [rle["segmentation"]], [0]).item() == 1


def test_voc_describes_the_objects_of_coco(digits):
    check_datasets(["digits_voc_train", "digits_voc_test"])
    assert len(DatasetCatalog.get("digits_voc_train")) == 3
    voc, coco = DatasetCatalog.get("digits_voc_test"), DatasetCatalog.get("digits_coco_test")
    evaluator = PascalVOCDetectionEvaluator("digits_voc_test")
    evaluator.reset()
    meta = MetadataCatalog.get("digits_voc_test")
    assert voc == load_voc_instances(meta.dirname, meta.split, meta.thing_classes)
    for ours, theirs in zip(voc, coco, strict=True):
        pixels = [np.asarray(Image.open(record["file_name"])) for record in (ours, theirs)]
        assert np.array_equal(*pixels)
        assert [list(map(float, box)) for box in corner_boxes(theirs)] == corner_boxes(ours)
        classes = [[a["category_id"] for a in r["annotations"]] for r in (ours, theirs)]
        assert classes[0] == classes[1]
        evaluator.process([ours], [perfect_output(ours)])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)


def test_voc_segmentation_lies_in_the_boxes(digits):
    folder = digits / "digits_voc/VOCdevkit/VOC2012"
    names = (folder / "ImageSets/Segmentation/test.txt").read_text().split()
    assert names == [record["image_id"] for record in DatasetCatalog.get("digits_voc_test")]
    difficult = 0
    for name in names:
        image, classes = (
            Image.open(folder / kind / f"{name}.png")
            for kind in ("SegmentationObject", "SegmentationClass")
        )
        assert image.mode == classes.mode == "P"
        assert classes.getpalette()[3:6] == [128, 0, 0] and classes.getpalette()[-3:] == [
            224,
            224,
            192,
        ]
        image, classes = np.asarray(image), np.asarray(classes)
        objects = ET.parse(folder / "Annotations" / f"{name}.xml").findall("object")
        assert set(np.unique(image)) <= {0, 255, *range(1, len(objects) + 1)}
        for k, element in enumerate(objects):
            difficult += int(element.findtext("difficult"))
            y, x = np.nonzero(image == k + 1)
            assert set(classes[y, x]) <= {int(element.findtext("name")) + 1}
            xmin, ymin, xmax, ymax = (int(c.text) for c in element.find("bndbox"))
            # 1-based and inclusive, around the border pixels, too
            assert (x + 1 > xmin).all() or xmin == 1
            assert (y + 1 > ymin).all() or ymin == 1
            assert (x + 1 <= xmax).all() and (y + 1 <= ymax).all()
    assert difficult > 0


def front_mask(record):
    """The mask of the last digit, which lies in front of all others."""
    return perfect_output(record, with_masks=True)["instances"].pred_masks[-1].numpy()


def test_cityscapes_images_are_those_of_its_own_tools(digits):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage

    check_datasets(["digits_cityscapes_sem_seg_val"])
    semantic = sorted(DatasetCatalog.get("digits_cityscapes_sem_seg_val"), key=file_name)
    coco = sorted(DatasetCatalog.get("digits_coco_test"), key=file_name)
    for ours, record in zip(semantic, coco, strict=True):
        train_id_file = ours["sem_seg_file_name"]
        annotation = Annotation()
        annotation.fromJsonFile(train_id_file.replace("labelTrainIds.png", "polygons.json"))
        painted = np.asarray(createInstanceImage(annotation, "ids"))
        ids = np.where(painted >= 1000, painted // 1000, painted)
        train_ids = np.vectorize(lambda i: labels.id2label[i].trainId)(ids)
        expected = {"instanceIds": painted, "labelIds": ids, "labelTrainIds": train_ids}
        for kind, values in expected.items():
            written = Image.open(train_id_file.replace("labelTrainIds", kind))
            assert np.array_equal(np.asarray(written), values)
        front = front_mask(record)
        assert painted[front][0] // 1000 == record["annotations"][-1]["category_id"] + 24
        assert np.array_equal(painted == painted[front][0], binary_fill_holes(front))


def test_cityscapes_instances_are_the_eight_classes_of_coco(digits):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    pytest.importorskip("shapely", reason="detectron2 reads Cityscapes' polygons with shapely")
    name = "digits_cityscapes_instance_seg_val"
    check_datasets([name])
    thing_classes = MetadataCatalog.get(name).thing_classes
    instances = sorted(DatasetCatalog.get(name), key=file_name)
    coco = sorted(DatasetCatalog.get("digits_coco_test"), key=file_name)
    for ours, record in zip(instances, coco, strict=True):
        digit_labels = [labels.id2label[a["category_id"] + 24] for a in record["annotations"]]
        expected = collections.Counter(x.name for x in digit_labels if not x.ignoreInEval)
        found = [thing_classes[a["category_id"]] for a in ours["annotations"]]
        assert collections.Counter(found) == expected
        if not digit_labels[-1].ignoreInEval:  # detectron2 lists the front first
            box = corner_boxes(record)[-1]
            assert ours["annotations"][0]["bbox"] == pytest.approx(box, abs=1e-3)


def test_difficult_objects_are_left_out(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("a\nb\n")
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    template = "<object><name>cat</name>{}" + box + "</object>"
    flags = {
        "a": ["<difficult>1</difficult>", "<difficult>0</difficult>", ""],
        "b": ["<difficult>1</difficult>"],
    }
    for name, marks in flags.items():
        objects = "".join(template.format(mark, k + 1) for k, mark in enumerate(marks))
        size = "<size><width>20</width><height>10</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
        Image.new("RGB", (20, 10)).save(tmp_path / f"JPEGImages/{name}.jpg")
    arguments = (str(tmp_path), "trainval", ("cat",))
    kept = load_voc(*arguments, difficult=False)
    assert load_voc(*arguments) == load_voc_instances(*arguments)
    assert [len(record["annotations"]) for record in load_voc_instances(*arguments)] == [3, 1]
    assert [[a["bbox"][0] for a in record["annotations"]] for record in kept] == [[1.0, 2.0], []]

    DatasetCatalog.register("test_voc_easy", lambda: kept)
    try:
        used = get_detection_dataset_dicts(["test_voc_easy"], filter_empty=True)
    finally:
        DatasetCatalog.remove("test_voc_easy")
    assert [record["image_id"] for record in used] == ["a"]


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_easy_is_registered_beside_detectron2s(year):
    easy, full = (MetadataCatalog.get(f"voc_{year}_trainval{end}") for end in ("_easy", ""))
    for key in "split", "year", "thing_classes", "evaluator_type":
        assert easy.get(key) == full.get(key)
