"""Data sets that lie: each mistake is told before the first iteration, wherever it is."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from dcn_projects.engine import Trainer, check_data, class_order, main, parse_arguments, read_config
from dcn_projects.engine.classes_by_name import check_class_order
from tests.digits_data import CONFIG, ROOT, SMALL, check_message

MASKS = "configs/Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml"
PIXELS = "configs/DeepLab/deeplab_R_14_digits.yaml"


@pytest.fixture
def register(datasets, request, tmp_path):
    """
    register(change) registers the digits of the COCO layout, whose annotations `change` was called
    with, and returns the name; it may return a text that is the file then.
    """
    folder = datasets / "digits_coco"
    text = (folder / "annotations/instances_train.json").read_text()

    def register(change=lambda content: None, images=None):
        content = json.loads(text)
        written = change(content)
        name = f"lying_{len(list(tmp_path.glob('lying_*')))}"
        path = tmp_path / f"{name}.json"
        path.write_bytes(written or json.dumps(content).encode())
        register_coco_instances(name, {}, str(path), str(images or folder / "train"))
        request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
        return name

    return register


def first(**changes):
    """What changes the first object in a file."""
    return lambda content: content["annotations"][0].update(changes)


def without(key):
    def change(content):
        del content["annotations"][0][key]

    return change


def fewer_classes(content):
    content["categories"] = content["categories"][:3]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] < 4]


def other_names(content):
    for category in content["categories"]:
        category["name"] = f"digit {category['name']}"


def repeated_ids(content):
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


def texts_for_image_ids(content):
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])


def no_file_name(content):
    del content["images"][-1]["file_name"]


def swapped_sides(content):
    content["images"][0]["height"] = 90  # the generated images are square
    image = content["images"][0]["id"]
    entry = next(a for a in content["annotations"] if a["image_id"] == image)
    entry["segmentation"] = {"size": [96, 90], "counts": [96 * 90]}


def with_bom(content):
    return json.dumps(content).encode("utf-8-sig")


# Mistake -> what changes the annotations, and words of the line
LIES = {
    "fewer classes": (fewer_classes, ["NUM_CLASSES is 10, but data set lying", "has 3 classes"]),
    "unknown category": (first(category_id=77), ["has the category_id 77"]),
    "repeated ids": (repeated_ids, ["is that of 2 annotations"]),
    "ignored": (first(ignore=1), ['"ignore": 1']),
    "no file name": (no_file_name, ["has no 'file_name'"]),
    "flat polygon": (first(segmentation=[1, 1, 9, 1, 9, 9]), ["a flat list of numbers"]),
    "polygon of two points": (first(segmentation=[[1, 1, 9, 9]]), ["a polygon of 4 numbers"]),
    "infinite polygon": (
        first(segmentation=[[1, 1, 9, float("inf"), 9, 9]]),
        ["a polygon with numbers that are not finite"],
    ),
    "huge polygon": (first(segmentation=[[1, 1, 9, 1e8, 9, 9]]), ["far outside of the image"]),
    "short run lengths": (
        first(segmentation={"size": [96, 96], "counts": [9, 9]}),
        ["RLE whose counts add up to 18, expected 96 x 96"],
    ),
    "size of another mask": (swapped_sides, ["RLE of the size [96, 90], which is [width, height]"]),
    "texts for image ids": (texts_for_image_ids, ["has the image_id '0', a text"]),
    "byte order mark": (with_bom, ["begins with a byte order mark"]),
}
EVALUATED_ONLY = {
    "no area": (without("area"), ["has no 'area'"]),
    "no iscrowd": (without("iscrowd"), ["has no 'iscrowd'"]),
}


def error_of(config, *args):
    """The line with which a run in this process ends, within 20 seconds and without a folder."""
    start = time.monotonic()
    with pytest.raises(SystemExit) as error:
        main(parse_arguments(["--config-file", config, *args, *SMALL.split()]))
    assert time.monotonic() - start < 20
    return error.value.code


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_training_data(lie, register, tmp_path):
    change, words = LIES[lie]
    options = ["DATASETS.TRAIN", f"('{register(change)}',)", "DATASETS.TEST", "()"]
    check_message(error_of(MASKS, *options, "OUTPUT_DIR", str(tmp_path / "out")), words)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of an untrained Mask R-CNN, which evaluates."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    cfg = read_config(MASKS, ["MODEL.DEVICE", "cpu"])
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("lie", sorted((LIES | EVALUATED_ONLY).keys() - {"fewer classes"}))
@pytest.mark.parametrize("how", ["training", "evaluation"])
def test_lies_in_test_data(lie, how, register, weights, tmp_path):
    """They are told before the training, too, and not when it ends."""
    change, words = (LIES | EVALUATED_ONLY)[lie]
    options = ["DATASETS.TRAIN", f"('{register()}',)", "DATASETS.TEST", f"('{register(change)}',)"]
    flags = ["--eval-only", "MODEL.WEIGHTS", weights] if how == "evaluation" else []
    error = error_of(MASKS, *flags, *options, "OUTPUT_DIR", str(tmp_path / "out"))
    check_message(error, words)
    assert not (tmp_path / "out").exists()


def reversed_names(content):
    """The same objects and names, but the ids of the categories count the other way round."""
    for entry in content["categories"]:
        entry["id"] = 100 - entry["id"]
    for entry in content["annotations"]:
        entry["category_id"] = 100 - entry["category_id"]


def config_for(train, test, *opts):
    cfg = read_config(CONFIG, [*SMALL.split(), *opts])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,)
    return cfg


def test_classes_in_the_same_order(register):
    cfg = config_for(register(), register())
    assert class_order(cfg, cfg.DATASETS.TEST[0]) is None


def test_classes_in_another_order_are_found_by_name(register, tmp_path):
    cfg = config_for(register(), register(reversed_names), "OUTPUT_DIR", str(tmp_path))
    (test,) = cfg.DATASETS.TEST
    DatasetCatalog.get(test)
    assert class_order(cfg, test) == list(range(9, -1, -1))
    # A model that finds everything has an AP of 100 on both.
    for name in (*cfg.DATASETS.TRAIN, test):
        evaluator = Trainer.build_evaluator(cfg, name)
        evaluator.reset()
        for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
            evaluator.process([record], [{"instances": perfect(record)}])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def perfect(record) -> Instances:
    found = Instances((record["height"], record["width"]))
    objects = record["annotations"]
    boxes = torch.tensor([entry["bbox"] for entry in objects]).reshape(-1, 4)
    found.pred_boxes = Boxes(torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1))
    found.pred_classes = torch.tensor([entry["category_id"] for entry in objects])
    found.scores = torch.ones(len(objects))
    return found


def test_fewer_classes_with_known_names(register, tmp_path):
    """As tools write them that number the classes of each split."""
    cfg = config_for(register(), register(fewer_classes), "OUTPUT_DIR", str(tmp_path))
    (test,) = cfg.DATASETS.TEST
    DatasetCatalog.get(test)
    assert class_order(cfg, test) == [0, 1, 2, *[-1] * 7]
    evaluator = Trainer.build_evaluator(cfg, test)
    evaluator.reset()
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
        evaluator.process([record], [{"instances": perfect(record)}])
    results = evaluator.evaluate()["bbox"]
    assert results["AP-0"] == results["AP-2"] == results["AP"] == pytest.approx(100)
    assert "AP-3" not in results


def test_classes_of_other_names(register, tmp_path):
    options = ["DATASETS.TRAIN", f"('{register()}',)"]
    options += ["DATASETS.TEST", f"('{register(other_names)}',)", "OUTPUT_DIR", str(tmp_path)]
    error = error_of(CONFIG, *options)
    check_message(
        error, ["has the class 'digit 0', and the model's classes, those of", "are 0, 1, 2, 3"]
    )


def test_classes_of_an_evaluation_without_training_data(register, tmp_path):
    """On another machine: then nothing is known of the names."""
    test = register(other_names)
    cfg = config_for("not_registered", test)
    DatasetCatalog.get(test)
    assert class_order(cfg, test) is None
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but data set"):
        check_class_order(
            config_for("not_registered", test, "MODEL.ROI_HEADS.NUM_CLASSES", "3"), test
        )
    # The config's own training set is of another model.
    three = register(fewer_classes)
    cfg = config_for(register(), three, "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    DatasetCatalog.get(three)
    assert class_order(cfg, three) is None


def test_files_that_are_registered_as_paths(register, datasets, request, tmp_path):
    text = Path(MetadataCatalog.get(register()).json_file).read_text()
    path = tmp_path / "paths.json"
    path.write_text(text)
    register_coco_instances("paths", {}, path, datasets / "digits_coco/train")
    request.addfinalizer(lambda: (DatasetCatalog.remove("paths"), MetadataCatalog.remove("paths")))
    check_data(config_for("paths", "paths"), ["paths"], ["paths"])
    path.write_text(text[:500])
    with pytest.raises(OSError, match="paths.json: the file is cut off"):
        check_data(config_for("paths", "paths"), ["paths"], ["paths"])


def no_objects(content):
    content["annotations"] = []


def crowds_alone(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


@pytest.mark.parametrize("change", [no_objects, crowds_alone])
def test_nothing_to_learn(change, register, tmp_path):
    name = register(change)
    path = MetadataCatalog.get(name).json_file
    options = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()"]
    error = error_of(CONFIG, *options, "OUTPUT_DIR", str(tmp_path / "out"))
    check_message(error, [f"DATASETS.TRAIN {path}: no object is there to be learnt in any image"])
    assert not (tmp_path / "out").exists()
    # Beside others, or where nothing is learnt from them, such data can be used.
    cfg = config_for(name, name)
    check_data(cfg, [name, register()], [])
    check_data(cfg, [], [name])


def test_sizes_that_are_written_as_floats(register, tmp_path):
    def change(content):
        for image in content["images"]:
            image.update(width=96.0, height=96.0)

    name = register(change)
    options = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    options += ["SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0"]
    args = ["--config-file", MASKS, *SMALL.split(), "OUTPUT_DIR", str(tmp_path), *options]
    main(parse_arguments(args))
    assert json.loads((tmp_path / "results.json").read_text()).keys() == {"bbox", "segm"}


def test_images_of_another_size(register, datasets, tmp_path):
    def change(content):
        content["images"][3].update(width=50)

    options = ["DATASETS.TRAIN", f"('{register(change)}',)", "DATASETS.TEST", "()"]
    check_message(error_of(CONFIG, *options), ["has 96 x 96 pixels, and in the annotations it has"])


def test_images_of_too_many_pixels(register, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    options = ["DATASETS.TRAIN", f"('{register()}',)", "DATASETS.TEST", "()"]
    words = ["000000.jpg has more than 9000 pixels, which INPUT.MAX_PIXELS allows: scale it down"]
    check_message(error_of(CONFIG, *options, "INPUT.MAX_PIXELS", "9000"), words)
    words = ["INPUT.MAX_PIXELS must be 1 or more, got 0"]
    check_message(error_of(CONFIG, *options, "INPUT.MAX_PIXELS", "0"), words)


def test_one_image_that_is_missing(register, datasets, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(datasets / "digits_coco/train", images)
    name = register(images=images)
    path = sorted(images.iterdir())[-1]
    path.unlink()
    options = ["DATASETS.TRAIN", f"('{register()}',)", "DATASETS.TEST", f"('{name}',)"]
    check_message(error_of(CONFIG, *options), [f"{path} does not exist"])


@pytest.fixture
def pixel_labels(request, tmp_path):
    """pixel_labels(array) registers four images of 40 x 30 pixels with these labels."""

    def register(labels):
        name = f"pixels_{len(DatasetCatalog.list())}"
        records = []
        for i in range(4):
            image, path = tmp_path / f"{name}_{i}.jpg", tmp_path / f"{name}_{i}.png"
            Image.new("RGB", (40, 30)).save(image)
            Image.fromarray(labels).save(path)
            records.append({"file_name": str(image), "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            stuff_classes=["nothing", "thing"], ignore_label=255, evaluator_type="sem_seg"
        )
        request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
        return name

    return register


def test_labels_of_the_test_set_are_read_before_training(pixel_labels, tmp_path, caplog):
    good, other = np.zeros((30, 40), np.uint8), np.full((30, 40), 7, np.uint8)
    good[:15] = 1
    options = ["DATASETS.TRAIN", f"('{pixel_labels(good)}',)"]
    options += ["DATASETS.TEST", f"('{pixel_labels(other)}',)", "OUTPUT_DIR", str(tmp_path)]
    error = error_of(PIXELS, *options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2")
    check_message(error, [".png has the label 7 at 1200 pixels, expected 0..1 and 255"])
    assert not caplog.messages


def test_a_mask_of_black_and_white(pixel_labels, caplog):
    """0 and 255: what is meant as the foreground is ignored."""
    labels = np.zeros((30, 40), np.uint8)
    labels[:10] = 255
    cfg = read_config(PIXELS, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"])
    check_data(cfg, [pixel_labels(labels)], [])
    (warning,) = caplog.messages
    assert "have the label 0 alone, and the ignored value 255 at 33.3 % of the pixels" in warning


@dataclasses.dataclass
class Load:
    """A loader that has no hash, since its fields may change."""

    records: list[dict]

    def __call__(self):
        return self.records


def test_loaders_that_are_objects(register, request):
    records, name = DatasetCatalog.get(register()), "of an object"
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    DatasetCatalog.register(name, Load(records))
    cfg = config_for(name, name)
    check_data(cfg, [name], [])
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, Load([record | {"width": 50} for record in records]))
    with pytest.raises(OSError, match="in the annotations it has 50 x"):
        check_data(cfg, [name], [])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda record: record["file_name"], "is a str, expected a dict"),
        (lambda record: {"width": 9}, "has no 'file_name'"),
        (lambda record: record | {"file_name": None}, "has no 'file_name'"),
        (lambda record: record | {"annotations": None}, "has a NoneType of annotations, expected"),
        (lambda record: record | {"width": None}, "has the width None, expected 1 or more pixels"),
        (lambda record: {**record, "height": "96"}, "has the height '96', expected 1 or more"),
    ],
)
def test_records_of_another_form(change, words, register, request):
    records, name = list(DatasetCatalog.get(register())), "of another form"
    records[3] = change(records[3])
    request.addfinalizer(lambda: (DatasetCatalog.remove(name), MetadataCatalog.remove(name)))
    DatasetCatalog.register(name, lambda: records)
    with pytest.raises(OSError, match=f"^data set of another form: record 3 .*{words}"):
        check_data(config_for(name, name), [name], [])


def test_processes_of_another_program(register, pixel_labels, monkeypatch):
    """Which builds a Trainer in each, and has checked nothing: the objects to learn are checked."""
    two = SimpleNamespace(get_world_size=lambda: 2)  # as far as the trainer is concerned
    monkeypatch.setattr("dcn_projects.engine.trainer.comm", two)
    name = register(first(bbox=[1, 2, -3, 4]))
    with pytest.raises(OSError, match=f"of data set {name} an object has the box .*negative"):
        Trainer.build_train_loader(config_for(name, name))
    labels = np.zeros((30, 40), np.uint8)
    cfg = read_config(PIXELS, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", *SMALL.split()])
    cfg.DATASETS.TRAIN = (pixel_labels(labels),)
    Trainer.build_train_loader(cfg)


def test_what_was_right_is_not_read_again(register, monkeypatch):
    name = register()
    cfg = config_for(name, name)
    check_data(cfg, [name], [name])
    reads = []
    monkeypatch.setattr("dcn_projects.engine.data_checks.check_pictures", reads.append)
    check_data(cfg, [name], [name])
    assert not reads
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    os.utime(path, (1, 1))
    with pytest.raises(OSError, match="has the category_id 77"):
        check_data(cfg, [name], [name])


PROGRAM = """
from detectron2.data.datasets import register_coco_instances
from dcn_projects.engine import parse_arguments, run_program

register_coco_instances("mine", {}, "mine.json", "images")
if __name__ == "__main__":
    run_program(parse_arguments())
"""


def test_the_exit_code(datasets, weights, tmp_path):
    """As a user runs it, in an empty folder."""
    (tmp_path / "train_mine.py").write_text(PROGRAM)
    shutil.copytree(datasets / "digits_coco/train", tmp_path / "images")
    text = (datasets / "digits_coco/annotations/instances_train.json").read_text()
    content = json.loads(text)
    content["annotations"][0]["bbox"][2] = float("nan")
    (tmp_path / "mine.json").write_text(json.dumps(content))
    words = ["--config-file", str(ROOT / MASKS), *SMALL.split()]
    words += ["DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)"]
    words += ["MODEL.WEIGHTS", weights, "SOLVER.MAX_ITER", "1"]
    done = subprocess.run(
        [sys.executable, "train_mine.py", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: mine.json: annotations[0] (id 1) in ")
    assert "Traceback" not in done.stderr and not (tmp_path / "output").exists()


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_proposals_run_no_code(register, tmp_path, key):
    """detectron2 unpickles them."""
    path, proof = tmp_path / "proposals.pkl", tmp_path / "proof"
    options = ["MODEL.LOAD_PROPOSALS=True", f"DATASETS.PROPOSAL_FILES_{key}=('{path}',)"]
    cfg = read_config(CONFIG, ["MODEL.DEVICE=cpu", *options])
    names = ([register()], []) if key == "TRAIN" else ([], [register()])
    boxes = {"ids": [1], "boxes": [np.ones((1, 4))], "bbox_mode": BoxMode.XYXY_ABS}
    path.write_bytes(pickle.dumps({**boxes, "objectness_logits": [np.ones(1)]}))
    check_data(cfg, *names)
    for content, message in (
        (pickle.dumps({"ids": MakesFolder(proof)}), f"{path} holds objects of posix.mkdir. Only"),
        (pickle.dumps([1]), f"{path} holds no proposals, but a list"),
        (b"", f"{path} is cut off or damaged (0 bytes are left, expected 1)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            check_data(cfg, *names)
        assert str(error.value).startswith(f"DATASETS.PROPOSAL_FILES_{key}: {message}")
    assert not proof.exists()
    path.unlink()
    with pytest.raises(OSError, match="proposals.pkl"):
        check_data(cfg, *names)


class MakesFolder:
    """Pickled as a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
