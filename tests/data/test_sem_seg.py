"""Data sets of labelled pixels on disk, and what the mapper makes of them."""

import numpy as np
import pytest
import scipy.io
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.data import SemSegMapper, check_datasets, read_labels
from dcn_projects.data.datasets import builtin
from dcn_projects.data.datasets.cityscapes import load_cityscapes_label_ids
from dcn_projects.data.datasets.sbd import load_voc_sbd_sem_seg
from dcn_projects.data.datasets.voc_seg import load_voc_sem_seg
from dcn_projects.data.datasets.warped_digits import make_dataset


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"GTcls": {"Segmentation": content}})
    else:
        Image.fromarray(content).save(path)


# Digits


def test_digits_in_the_voc_layout(root):
    make_dataset(root / "digits_voc", "voc", size=64, count_train=2, count_test=2)
    names = ["digits_voc_sem_seg_train", "digits_voc_sem_seg_test"]
    check_datasets(names)
    for name in names:
        boxes = DatasetCatalog.get(name.replace("_sem_seg", ""))
        for record, with_boxes in zip(DatasetCatalog.get(name), boxes, strict=True):
            assert record["file_name"] == with_boxes["file_name"]
            labels = read_labels(record["sem_seg_file_name"], 11, 255)
            digits = {a["category_id"] for a in with_boxes["annotations"]}
            assert set(np.unique(labels)) - {0, 255} <= {1 + d for d in digits}
    assert MetadataCatalog.get(name).stuff_classes == ["background", *"0123456789"]


def test_label_ids_of_digits_are_their_train_ids(root):
    make_dataset(root / "digits_cityscapes", "cityscapes", size=64, count_train=2, count_test=3)
    folder = root / "digits_cityscapes"
    ours = load_cityscapes_label_ids(f"{folder}/leftImg8bit/val", f"{folder}/gtFine/val")
    theirs = {r["file_name"]: r for r in DatasetCatalog.get("digits_cityscapes_sem_seg_val")}
    assert len(ours) == len(theirs) == 3
    for record in ours:
        files = [r["sem_seg_file_name"] for r in (record, theirs[record["file_name"]])]
        assert files[0].endswith("_labelIds.png") and files[1].endswith("_labelTrainIds.png")
        np.testing.assert_array_equal(*(read_labels(f, 19, 255) for f in files))


# VOC, SBD and Cityscapes


@pytest.fixture
def voc(tmp_path):
    """Images 1 and 2 are VOC's train, 3 is its val; SBD has 2 to 5."""
    blank = np.zeros((2, 2), np.uint8)
    lists = {"VOC2012/ImageSets/Segmentation/train": "1\n2\n"}
    lists |= {"VOC2012/ImageSets/Segmentation/val": "3\n", "SBD/train": "4\n2\n", "SBD/val": "3\n5"}
    for name, text in lists.items():
        write(tmp_path / f"{name}.txt", text)
    for i in (1, 2, 3):
        write(tmp_path / f"VOC2012/SegmentationClass/{i}.png", blank)
        write(tmp_path / f"VOC2012/JPEGImages/{i}.jpg", blank)
    for i in (2, 3, 4, 5):
        write(tmp_path / f"SBD/cls/{i}.mat", blank)
        write(tmp_path / f"SBD/img/{i}.jpg", blank)
    return tmp_path


def test_trainaug_is_voc_and_what_sbd_adds_without_val(voc):
    records = load_voc_sbd_sem_seg(str(voc / "VOC2012"), str(voc / "SBD"))
    assert [r["image_id"] for r in records] == ["1", "2", "4", "5"]
    files = [r["sem_seg_file_name"].removeprefix(f"{voc}/") for r in records]
    assert files[:2] == [f"VOC2012/SegmentationClass/{i}.png" for i in (1, 2)]
    assert files[2:] == [f"SBD/cls/{i}.mat" for i in (4, 5)]
    for record in records:
        size = read_labels(record["sem_seg_file_name"], 21, 255).shape
        assert Image.open(record["file_name"]).size == size[::-1]


def test_lists_of_paths(voc):
    write(voc / "VOC2012/ImageSets/Segmentation/trainaug.txt",
          "/JPEGImages/2008_1.jpg /SegmentationClassAug/2008_1.png\n\n2008_2\n")  # fmt: skip
    image_list = "ImageSets/Segmentation/trainaug.txt"
    records = load_voc_sem_seg(str(voc / "VOC2012"), image_list, "SegmentationClassAug")
    assert [r["image_id"] for r in records] == ["2008_1", "2008_2"]
    assert records[0]["file_name"] == f"{voc}/VOC2012/JPEGImages/2008_1.jpg"
    expected = f"{voc}/VOC2012/SegmentationClassAug/2008_1.png"
    assert records[0]["sem_seg_file_name"] == expected


def test_registered_classes():
    for name in [builtin.VOC_SBD, "voc_2012_val_sem_seg", "voc_2012_trainaug_mxnet_sem_seg"]:
        meta = MetadataCatalog.get(name)
        assert len(meta.stuff_classes) == len(meta.stuff_colors) == 21
        assert (meta.stuff_classes[0], meta.stuff_classes[15]) == ("background", "person")
    meta = MetadataCatalog.get("cityscapes_fine_label_ids_val")
    theirs = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert meta.stuff_classes == theirs.stuff_classes
    assert meta.stuff_colors[13] == (0, 0, 142)  # car


@pytest.mark.parametrize(
    "name, missing",
    [
        ("cityscapes_fine_label_ids_train", "cityscapes/gtFine/train"),
        (builtin.VOC_SBD, "SBD/train.txt"),
        ("voc_2012_trainaug_png_sem_seg", "VOC2012/ImageSets/Segmentation/trainaug.txt"),
    ],
)
def test_missing_folders_are_named(name, missing, root):
    (root / "cityscapes/leftImg8bit/train").mkdir(parents=True, exist_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{name}: .*{missing}/? is missing"):
        check_datasets([name])


def test_an_image_without_labels_is_named(tmp_path):
    write(tmp_path / "images/bonn/bonn_0_0_leftImg8bit.png", np.zeros((2, 2), np.uint8))
    missing = "gt/bonn/bonn_0_0_gtFine_labelIds.png is missing"
    with pytest.raises(FileNotFoundError, match=missing):
        load_cityscapes_label_ids(str(tmp_path / "images"), str(tmp_path / "gt"))
    with pytest.raises(FileNotFoundError, match="gt holds no"):
        load_cityscapes_label_ids(str(tmp_path / "gt"), str(tmp_path))


# The mapper


@pytest.fixture
def record(tmp_path):
    """The labels say where a pixel of the image is."""
    y, x = np.mgrid[:60, :80]
    write(tmp_path / "image.png", np.stack((y, x, 0 * x), axis=2).astype(np.uint8))
    write(tmp_path / "labels.png", (y // 20 * 4 + x // 20).astype(np.uint8))
    files = {"file_name": str(tmp_path / "image.png"), "image_id": 7}
    return files | {"sem_seg_file_name": str(tmp_path / "labels.png")}


def make_mapper(*opts, is_train=True):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 12
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = [120], 30
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.merge_from_list(list(opts))
    return SemSegMapper(cfg, is_train=is_train)


def test_scaled_then_cropped(record):
    crop = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [100, 90]]
    mapper = make_mapper(*crop)
    np.random.seed(0)
    seen = set()
    for _ in range(5):
        out = mapper(record)
        assert out["image"].shape == (3, 100, 90) and out["image"].dtype == torch.uint8
        assert out["sem_seg"].shape == (100, 90) and out["sem_seg"].dtype == torch.int64
        assert (out["height"], out["width"], out["image_id"]) == (60, 80, 7)
        # Twice as large: the image, interpolated, and the labels, repeated, tell the same place.
        y, x = out["image"][:2].long()
        assert ((y // 20 * 4 + x // 20) == out["sem_seg"]).float().mean() > 0.9
        assert y[1, 0] <= y[-1, 0] <= y[1, 0] + 50
        seen.add((y[50, 45].item(), x[50, 45].item()))
    assert len(seen) > 1


def test_mirrored(record):
    mapper = make_mapper("INPUT.MIN_SIZE_TRAIN", [60], "INPUT.RANDOM_FLIP", "horizontal")
    np.random.seed(0)
    outs = [mapper(record) for _ in range(8)]
    assert len({out["image"][1, 0, 0].item() for out in outs}) == 2
    for out in outs:
        y, x = out["image"][:2].long()
        assert torch.equal(y // 20 * 4 + x // 20, out["sem_seg"])


def test_labels_are_not_read_in_testing(record):
    out = make_mapper(is_train=False)({**record, "sem_seg_file_name": "nowhere"})
    assert out["image"].shape == (3, 30, 40) and (out["height"], out["width"]) == (60, 80)
    assert "sem_seg" not in out


@pytest.mark.parametrize(
    "change, words",
    [
        ("labels", ["labels.png has the label 12 at 1 pixels, expected 0..11 and 255"]),
        ("size", ["labels.png has 80 x 30 pixels, but its image", "image.png has 80 x 60"]),
        ("image", ["Cannot use", "image.png"]),
        ("annotated", ["Cannot use", "image.png", "80", "81"]),
    ],
)
def test_mistakes_are_named(change, words, record, tmp_path):
    labels = np.array(Image.open(tmp_path / "labels.png"))
    if change == "labels":
        labels[3, 4] = 12
        write(tmp_path / "labels.png", labels)
    elif change == "size":
        write(tmp_path / "labels.png", labels[:30])
    elif change == "image":
        (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:100])
    else:
        record |= {"height": 60, "width": 81}
    with pytest.raises(OSError) as error:
        make_mapper()(record)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
