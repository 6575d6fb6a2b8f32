"""train_net.py as its users run it: train, evaluate, resume, several processes, and mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

import train_net
from dcn_projects.data.datasets.cityscapes import load_cityscapes_label_ids
from dcn_projects.data.datasets.warped_digits import make_dataset

ROOT = Path(__file__).parents[1]
CONFIG = "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
SMALL = "INPUT.MIN_SIZE_TRAIN [96] INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 MODEL.DEVICE cpu"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    make_dataset(str(folder / "digits_coco"), "coco", size=96, count_train=8, count_test=4)
    return folder


def run(datasets, output, *args, launcher=(sys.executable, "train_net.py"), opts=SMALL):
    command = [*launcher, "--config-file", CONFIG, *args]
    if opts is not None:
        command += [*opts.split(), "OUTPUT_DIR", str(output)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    env["CUDA_VISIBLE_DEVICES"] = ""
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(command, cwd=ROOT, env=env, timeout=300, **output)


def test_train_evaluate_resume(datasets, tmp_path):
    period = ("MODEL.DEFORMABLE.STATISTICS_PERIOD", "2")
    done = run(datasets, tmp_path, "SOLVER.MAX_ITER", "2", *period)
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    for layer in ("backbone.res5.0.conv2", "roi_heads.pooler"):
        for key in ("mean", "max", "outside"):
            assert metrics[f"offsets/{layer}/{key}"] >= 0
    trained = json.loads((tmp_path / "results.json").read_text())

    weights = str(tmp_path / "model_final.pth")
    again = run(datasets, tmp_path / "eval", "--eval-only", "MODEL.WEIGHTS", weights)
    assert again.returncode == 0, again.stdout
    assert json.loads((tmp_path / "eval/results.json").read_text()) == trained
    assert "has the checkpoints of another training" not in done.stdout

    resumed = run(datasets, tmp_path, "--resume", "SOLVER.MAX_ITER", "4")
    assert resumed.returncode == 0, resumed.stdout
    assert "Starting training from iteration 2" in resumed.stdout

    other = ("--resume", "SOLVER.MAX_ITER", "4", "SOLVER.OPTIMIZER", "SGD")
    message = run(datasets, tmp_path, *other).stdout.strip().splitlines()[-1]
    assert message.startswith("error: ") and "SOLVER.OPTIMIZER is SGD" in message


# Runs train_net.py and writes what the processes have at the end.
TWO_PROCESSES = """
import json, sys
import train_net
from detectron2.utils import comm

class Trainer(train_net.Trainer):
    def train(self):
        super().train()
        sums = comm.all_gather([p.double().sum().item() for p in self.model.parameters()])
        buffers = [b.double().sum().item() for b in self.model.buffers()]
        statistics = comm.all_gather(buffers)
        ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank(), comm.get_local_size()))
        if comm.is_main_process():
            with open(self.cfg.OUTPUT_DIR + "/processes.json", "w") as f:
                json.dump({"sums": sums, "statistics": statistics, "ranks": ranks}, f)

train_net.Trainer = Trainer
train_net.launch(train_net.main, train_net.parse_arguments())
"""


def test_two_processes(datasets, tmp_path):
    """torchrun, without GPUs over gloo: both processes train the same model, on images of their
    own, and evaluate a half each."""
    script = tmp_path / "train_two.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + TWO_PROCESSES)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    torchrun += ("--nproc-per-node", "2")
    options = ("SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0")
    options += ("MODEL.DEFORMABLE.STATISTICS_PERIOD", "1")
    done = run(datasets, tmp_path, *options, launcher=(*torchrun, script))
    assert done.returncode == 0, done.stdout
    processes = json.loads((tmp_path / "processes.json").read_text())
    assert processes["sums"][0] == processes["sums"][1]
    # Those of BatchNorm were of other images in each.
    assert processes["statistics"][0] == processes["statistics"][1]
    assert processes["ranks"] == [[0, 0, 2], [1, 1, 2]]
    assert "World size: 2" in done.stdout
    assert "offsets/roi_heads.pooler/max" in (tmp_path / "metrics.json").read_text()
    assert "bbox" in json.loads((tmp_path / "results.json").read_text())
    state = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert state["iteration"] == 1
    predictions = torch.load(tmp_path / "inference/instances_predictions.pth", weights_only=False)
    assert sorted(p["image_id"] for p in predictions) == [0, 1, 2, 3]


def truncated(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


@pytest.fixture(scope="module")
def own_data(datasets):
    """
    own_data(damage) registers the digits for training as a user would, with annotations that
    `damage` changed, and returns the name.
    """
    names = []
    folder = datasets / "digits_coco"
    text = (folder / "annotations/instances_train.json").read_text()

    def register(damage=lambda annotations: None, images=folder / "train"):
        annotations = json.loads(text)
        path = folder / f"mine_{len(names)}.json"
        content = json.dumps(damage(annotations) or annotations)
        path.write_text(content[:500] if damage is cut_off else content)
        names.append(path.stem)
        register_coco_instances(path.stem, {}, str(path), str(images))
        return path.stem

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def options_for(name, output):
    options = f"{SMALL} DATASETS.TRAIN ('{name}',) DATASETS.TEST ('{name}',) OUTPUT_DIR {output}"
    return [*options.split(), "DATALOADER.NUM_WORKERS", "0"]


def error_of(*args, config=CONFIG):
    """What the program says at the end of a run in this process."""
    flags = [a for a in args if a.startswith("--")]
    args = [*flags, "--config-file", config, *(a for a in args if a not in flags)]
    args = train_net.parse_arguments(args)
    with pytest.raises(SystemExit) as e:
        train_net.setup(args)
        train_net.main(args)
    return e.value.code


def check_message(message, named):
    """One line says what is wrong. As an exit code it is not 0."""
    assert message.startswith("error: ") and "\n" not in message
    assert all(n in message for n in named), message


GAUSSIAN = "MODEL.ROI_HEADS.NMS_TYPE gaussian"
SCALES = "TEST.AUG.ENABLED True TEST.AUG.SCALES"
MISTAKES = {
    "unknown key": ("MODEL.RFCM.GAMMA 0.1", ["MODEL.RFCM"]),
    "wrong type": ("SOLVER.BASE_LR fast", ["SOLVER.BASE_LR"]),
    "key without value": ("SOLVER.BASE_LR", ["SOLVER.BASE_LR has no value"]),
    "unknown data set": ("DATASETS.TRAIN ('digits_coco_trian',)", ["digits_coco_trian"]),
    "nothing to train on": ("DATASETS.TRAIN ()", ["DATASETS.TRAIN is empty"]),
    "no data to evaluate": (
        "--eval-only MODEL.WEIGHTS a.pth DATASETS.TEST ()",
        ["DATASETS.TEST is empty"],
    ),
    "nothing to evaluate": ("--eval-only", ["MODEL.WEIGHTS is empty"]),
    "depth": ("MODEL.RESNETS.DEPTH 51", ["MODEL.RESNETS.DEPTH is 51"]),
    "no such heads": ("MODEL.ROI_HEADS.NAME Heads", ["'Heads'", "ROI_HEADS"]),
    "maps without heads": ("MODEL.ROI_HEADS.NAME StandardROIHeads", ["RFCN", "StandardROIHeads"]),
    "heads without maps": (
        "MODEL.META_ARCHITECTURE GeneralizedRCNN",
        ["GeneralizedRCNN", "RFCNROIHeads"],
    ),
    "other classes": ("MODEL.ROI_HEADS.NUM_CLASSES 3", ["NUM_CLASSES is 3", "mine", "10 classes"]),
    "classes of pixels": (
        "MODEL.META_ARCHITECTURE DeepLab MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["DeepLab", "classes of pixels", "mine"],
    ),
    "no iterations": ("SOLVER.MAX_ITER 0", ["SOLVER.MAX_ITER is 0"]),
    "mixed precision": ("SOLVER.AMP.ENABLED True", ["SOLVER.AMP.ENABLED", "GPU"]),
    "patterns without their model": (
        "MODEL.DEFORMABLE.SELECT ['*.conv2']",
        ["DEFORMABLE.SELECT", "MODEL.DEFORMABLE.META_ARCHITECTURE RFCN"],
    ),
    "a key of other heads": ("MODEL.ROI_HEADS.FILL_BATCH True", ["FILL_BATCH", "MXNetROIHeads"]),
    "divergence": ("SOLVER.BASE_LR 1e30 SOLVER.MAX_ITER 3", ["diverged", "SOLVER.BASE_LR"]),
    "missing weights": ("MODEL.WEIGHTS nowhere/model.pth", ["MODEL.WEIGHTS", "nowhere/model.pth"]),
    "truncated weights": ("MODEL.WEIGHTS {truncated}", ["MODEL.WEIGHTS", "cut.pth", "cut off"]),
    "sigma": (GAUSSIAN + " MODEL.ROI_HEADS.SOFT_NMS_SIGMA -1.0", ["SOFT_NMS_SIGMA", "-1.0"]),
    "heads without soft-NMS": (
        GAUSSIAN + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["NMS_TYPE"],
    ),
    "cascade with OHEM": (
        "MODEL.ROI_BOX_HEAD.OHEM_NUM 8 MODEL.META_ARCHITECTURE GeneralizedRCNN"
        + " MODEL.ROI_HEADS.NAME DynamicCascadeROIHeads",
        ["OHEM_NUM", "DynamicCascadeROIHeads"],
    ),
    "windows": ("TEST.WINDOW_SIZE [64]", ["TEST.WINDOW_SIZE", "[64]"]),
    "windows of a detector": (
        "TEST.WINDOW_SIZE [64,64] TEST.WINDOW_STRIDE [32,32]",
        ["TEST.WINDOW_SIZE", "RFCN", "DeepLab"],
    ),
    "scales": (SCALES + " [480,576]", ["TEST.AUG.SCALES", "480"]),
    "augmentation of a cascade": (
        SCALES
        + " [] TEST.AUG.MERGE raw MODEL.META_ARCHITECTURE GeneralizedRCNN"
        + " MODEL.ROI_HEADS.NAME CascadeROIHeads",
        ["TEST.AUG.MERGE"],
    ),
    "pooling of other heads": (
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE ModulatedDeformROIPool"
        + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME OHEMROIHeads",
        ["ROI_BOX_HEAD.POOLER_TYPE", "OHEMROIHeads", "MODEL.ROI_HEADS.NAME DeformROIHeads"],
    ),
    "pooling of masks by other heads": (
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE DeformROIPool MODEL.MASK_ON True"
        + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["ROI_MASK_HEAD.POOLER_TYPE DeformROIPool", "MODEL.ROI_HEADS.NAME DeformROIHeads"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, own_data, tmp_path):
    opts, named = MISTAKES[mistake]
    opts = opts.format(truncated=truncated(tmp_path)).split()
    check_message(error_of(*options_for(own_data(), tmp_path / "out"), *opts), named)


def unknown_category(annotations):
    annotations["annotations"][0]["category_id"] = 77


def no_images(annotations):
    annotations["images"], annotations["annotations"] = [], []


def no_objects(annotations):
    annotations["annotations"] = []


def no_box(annotations):
    for annotation in annotations["annotations"]:
        del annotation["bbox"]


def cut_off(annotations):
    """`own_data` writes only the beginning."""


def a_list(annotations):
    return [annotations]


@pytest.mark.parametrize(
    "damage, message",
    [
        (unknown_category, "category_id=77"),
        (no_images, "is empty"),
        (no_objects, "No valid data"),
        (no_box, "the box None"),
        (cut_off, "cut off or no JSON"),
        (a_list, "list"),
    ],
)
def test_damaged_annotations(damage, message, own_data, tmp_path):
    name = own_data(damage)
    error = error_of(*options_for(name, tmp_path), "DATASETS.TEST", "()")
    check_message(error, [message, ".jpg" if damage is no_box else name])


@pytest.fixture
def trained(tiny_model, tmp_path):
    """Weights, and the folder of a run that can be resumed with them."""
    weights = Path(tiny_model()[1])
    weights.rename(tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    return tmp_path / "model_0000001.pth", tmp_path


@pytest.mark.parametrize(
    "change, named",
    [
        ("MODEL.RESNETS.DEPTH 50", "lacks backbone.res2.1.conv1.weight"),
        (
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE PSROIPool",
            "the model has no roi_heads.score_maps.rfcn_cls_o",
        ),
        (
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7",
            "rfcn_cls.weight (99, 256, 1, 1) and not (539, 256, 1, 1)",
        ),
    ],
)
@pytest.mark.parametrize("how", ["evaluate", "resume"])
def test_weights_of_another_model(how, change, named, trained, own_data):
    weights, folder = trained
    if how == "evaluate":
        options = ["--eval-only", *options_for(own_data(), folder / "out")]
        options += ["MODEL.WEIGHTS", str(weights)]
    else:
        options = ["--resume", *options_for(own_data(), folder)]
    check_message(error_of(*options, *change.split()), [str(weights), named])


def test_resuming_needs_more_than_weights(trained, own_data):
    weights, folder = trained
    message = error_of("--resume", *options_for(own_data(), folder))
    check_message(message, [str(weights), "weights alone", "MODEL.WEIGHTS"])


def test_a_folder_that_is_used_again(trained, own_data, caplog):
    weights, folder = trained
    error_of(
        *options_for(own_data(), folder), "MODEL.WEIGHTS", str(weights), "SOLVER.BASE_LR", "1e30"
    )
    assert f"{folder} has the checkpoints of another training" in caplog.text


def test_training_from_another_depth(trained, own_data):
    weights, folder = trained
    options = [*options_for(own_data(), folder / "out"), "MODEL.WEIGHTS", str(weights)]
    message = error_of(*options, "MODEL.RESNETS.DEPTH", "50")
    check_message(message, [str(weights), "1 blocks in res2", "MODEL.RESNETS.DEPTH", "has 3"])


def one_mask_less(annotations):
    del annotations["annotations"][-1]["segmentation"]


def test_masks_that_are_missing_are_found_before_training(own_data, tmp_path):
    options = [*options_for(own_data(one_mask_less), tmp_path / "out"), "DATASETS.TEST", "()"]
    error = error_of(*options, config="configs/Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml")
    check_message(error, ["an object has no mask", ".jpg"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image(workers, own_data, datasets, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(datasets / "digits_coco/train", images)
    for image in images.iterdir():
        image.write_bytes(image.read_bytes()[:200])
    options = options_for(own_data(images=images), tmp_path / "out")
    options += ["DATALOADER.NUM_WORKERS", workers]
    check_message(error_of(*options), [str(images), "Replace the file"])


def test_broken_png(own_data, datasets, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for image in (datasets / "digits_coco/train").iterdir():
        Image.open(image).save(images / image.name, format="PNG")
        content = bytearray((images / image.name).read_bytes())
        content[36] ^= 255
        (images / image.name).write_bytes(content)
    options = options_for(own_data(images=images), tmp_path / "out")
    check_message(error_of(*options), [str(images), "broken PNG", "Replace the file"])


@pytest.fixture
def mistaken_labels(tmp_path):
    """The name of a data set in the layout of Cityscapes, with labels that it does not have."""
    make_dataset(tmp_path, "cityscapes", size=64, count_train=4, count_test=2)
    for path in tmp_path.glob("gtFine/train/digits/*_labelIds.png"):
        Image.fromarray(np.full((64, 64), 77, np.uint8)).save(path)
    records = load_cityscapes_label_ids(f"{tmp_path}/leftImg8bit/train", f"{tmp_path}/gtFine/train")
    name = f"labels_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=[f"class {k}" for k in range(19)], evaluator_type="cityscapes_sem_seg"
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_mistaken_labels(mistaken_labels, tmp_path):
    """They are read in another process, whose error is one line, too."""
    config = "configs/DeepLab/deeplab_R_14_digits.yaml"
    options = [*options_for(mistaken_labels, tmp_path / "out"), "DATASETS.TEST", "()"]
    error = error_of(*options, "DATALOADER.NUM_WORKERS", "1", config=config)
    check_message(error, ["_labelIds.png has the label 77 at 4096 pixels, expected 0..33"])
    error = error_of(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "21", config=config)
    check_message(error, ["SEM_SEG_HEAD.NUM_CLASSES is 21", mistaken_labels, "19 classes"])
    check_message(error_of(*options), ["META_ARCHITECTURE RFCN finds objects", mistaken_labels])


def test_missing_config_file():
    check_message(error_of(config="configs/none.yaml"), ["configs/none.yaml"])


def test_output_folder_that_cannot_be_made(own_data):
    check_message(error_of(*options_for(own_data(), "/proc/nothing")), ["/proc/nothing"])


def test_missing_data_set(tmp_path):
    """As its users see it: the last line, and an exit code that is not 0."""
    done = run(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 1, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    check_message(last, ["digits_coco_train", "tools/make_dataset.py"])
