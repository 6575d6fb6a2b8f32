"""What a run of train_net.py says of mistakes, in this process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from dcn_projects.data.datasets.cityscapes import load_cityscapes_label_ids
from dcn_projects.data.datasets.warped_digits import make_dataset
from dcn_projects.engine import main, parse_arguments, setup
from tests.digits_data import CONFIG, SMALL, check_message


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
    # A mistake that is not found ends soon.
    return [*options.split(), "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "2"]


def error_of(*args, config=CONFIG, run=None):
    """What the program says at the end of a run in this process, or of a part of it."""
    flags = [a for a in args if a.startswith("--")]
    args = [*flags, "--config-file", config, *(a for a in args if a not in flags)]
    args = parse_arguments(args)
    with pytest.raises(SystemExit) as e:
        (run or main)(args)
    return e.value.code


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
    "other heads in R-FCN": (
        "MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["RFCN", "StandardROIHeads"],
    ),
    "maps of another pooling": (
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformROIPool",
        ["ROI_BOX_HEAD.POOLER_TYPE is DeformROIPool", "DeformPSROIPool"],
    ),
    "other classes": ("MODEL.ROI_HEADS.NUM_CLASSES 3", ["NUM_CLASSES is 3", "mine", "10 classes"]),
    "no iterations": ("SOLVER.MAX_ITER 0", ["SOLVER.MAX_ITER is 0"]),
    "mixed precision": ("SOLVER.AMP.ENABLED True", ["SOLVER.AMP.ENABLED", "GPU"]),
    "patterns that match nothing": (
        "MODEL.DEFORMABLE.SELECT ['*.conv9']",
        ["DEFORMABLE.SELECT", "*.conv9"],
    ),
    "a key of other heads": ("MODEL.ROI_HEADS.FILL_BATCH True", ["FILL_BATCH", "MXNetROIHeads"]),
    "divergence": ("SOLVER.BASE_LR 1e30 SOLVER.MAX_ITER 3", ["diverged", "SOLVER.BASE_LR"]),
    "frozen norms of random weights": (
        "MODEL.RESNETS.NORM FrozenBN",
        ["MODEL.WEIGHTS is ''", "frozen layers", "set MODEL.RESNETS.NORM BN"],
    ),
    "frozen stages of random weights": (
        "MODEL.BACKBONE.FREEZE_AT 2",
        ["MODEL.WEIGHTS is ''", "frozen layers", "set MODEL.BACKBONE.FREEZE_AT 0"],
    ),
    "missing weights": ("MODEL.WEIGHTS nowhere/model.pth", ["MODEL.WEIGHTS", "nowhere/model.pth"]),
    "truncated weights": ("MODEL.WEIGHTS {truncated}", ["MODEL.WEIGHTS", "cut.pth", "cut off"]),
    "sigma": (GAUSSIAN + " MODEL.ROI_HEADS.SOFT_NMS_SIGMA -1.0", ["SOFT_NMS_SIGMA", "-1.0"]),
    "heads without soft-NMS": (
        GAUSSIAN + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["NMS_TYPE"],
    ),
    "cascade with OHEM": (
        "MODEL.ROI_BOX_HEAD.OHEM_NUM 8 MODEL.META_ARCHITECTURE GeneralizedRCNN"
        + " MODEL.ROI_HEADS.NAME CascadeROIHeads",
        ["OHEM_NUM", "CascadeROIHeads"],
    ),
    "windows": ("TEST.WINDOW_SIZE [64]", ["TEST.WINDOW_SIZE", "[64]"]),
    "windows of a detector": (
        "TEST.WINDOW_SIZE [64,64] TEST.WINDOW_STRIDE [32,32]",
        ["TEST.WINDOW_SIZE", "RFCN", "DeepLab"],
    ),
    "kind of NMS": ("MODEL.ROI_HEADS.NMS_TYPE gausian", ["NMS_TYPE", "gausian"]),
    "scales": (SCALES + " [480,576]", ["TEST.AUG.SCALES", "480"]),
    "pooling of other heads": (
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE ModulatedDeformROIPool"
        + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["ROI_BOX_HEAD.POOLER_TYPE Modul", "(MODEL.META", "StandardROIHeads)", "DeformROIHeads"],
    ),
    "pooling of masks by other heads": (
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE DeformROIPool MODEL.MASK_ON True"
        + " MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.ROI_HEADS.NAME StandardROIHeads",
        ["MODEL.ROI_MASK_HEAD.POOLER_TYPE DeformROIPool", "DeformROIHeads"],
    ),
}


# All others are found before there are several processes.
FOUND_LATER = {
    *("depth", "patterns that match nothing", "divergence"),
    *("frozen norms of random weights", "frozen stages of random weights"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, own_data, tmp_path):
    opts, named = MISTAKES[mistake]
    opts = opts.format(truncated=truncated(tmp_path)).split()
    run = main if mistake in FOUND_LATER else setup
    check_message(error_of(*options_for(own_data(), tmp_path / "out"), *opts, run=run), named)


def test_augmentation_is_checked_in_evaluation_too(own_data, trained):
    """detectron2's has no keypoints; that is known when the model is there."""
    weights, folder = trained
    options = [*options_for(own_data(), folder / "out"), "MODEL.WEIGHTS", str(weights)]
    options += ["TEST.AUG.ENABLED", "True", "MODEL.LOAD_PROPOSALS", "True"]
    check_message(error_of("--eval-only", *options), ["TEST.AUG", "LOAD_PROPOSALS"])


@pytest.fixture(scope="module")
def once_trained(own_data, tmp_path_factory):
    """The folder of a training of one iteration."""
    folder = tmp_path_factory.mktemp("once")
    options = [*options_for(own_data(), folder), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"]
    main(parse_arguments(["--config-file", CONFIG, *options]))
    return folder


def test_frozen_layers_are_loaded_from_weights(trained, own_data):
    """Such a training starts, and is resumed although MODEL.WEIGHTS may be empty then."""
    weights, folder = trained
    options = [*options_for(own_data(), folder / "out"), "DATASETS.TEST", "()"]
    options += ["MODEL.BACKBONE.FREEZE_AT", "2", "SOLVER.BASE_LR", "1e-5"]
    words = [*options, "MODEL.WEIGHTS", str(weights), "SOLVER.MAX_ITER", "1"]
    main(parse_arguments(["--config-file", CONFIG, *words]))
    main(parse_arguments(["--config-file", CONFIG, "--resume", *options]))


@pytest.mark.parametrize(
    "change, named",
    [
        ("MODEL.BACKBONE.FREEZE_AT 2", "54 that are trained. Make MODEL.BACKBONE.FREEZE_AT"),
        ("MODEL.RESNETS.NORM FrozenBN", "35 that are trained. Make MODEL.BACKBONE.FREEZE_AT and "),
        ("SOLVER.LR_FACTORS [('res5',0.1)]", "Make SOLVER.LR_FACTORS,"),
        ("SOLVER.BIAS_LR_FACTOR 2.0", "Make SOLVER.LR_FACTORS, BIAS_LR_FACTOR,"),
    ],
)
def test_resuming_with_other_parameters(change, named, once_trained, own_data):
    """A frozen norm has the names of another one, so that the checkpoint is loaded."""
    options = options_for(own_data(), once_trained)
    check_message(error_of("--resume", *options, *change.split()), [named, "without --resume"])


def test_resuming_at_another_rate(own_data, tmp_path):
    """As the error of a training that diverged advises."""
    options = [*options_for(own_data(), tmp_path), "SOLVER.WARMUP_ITERS", "0"]
    options += ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    main(parse_arguments(["--config-file", CONFIG, *options, "DATASETS.TEST", "()"]))
    words = ["--resume", *options, "SOLVER.MAX_ITER", "3", "SOLVER.BASE_LR", "1e-5"]
    main(parse_arguments(["--config-file", CONFIG, *words, "DATASETS.TEST", "()"]))
    metrics = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 2 and metrics[-1]["lr"] == 1e-5


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
        (unknown_category, "category_id 77"),
        (no_images, "is empty"),
        (no_objects, "no object is there to be learnt in any image"),
        (no_box, "annotations[0] has no 'bbox'"),
        (cut_off, "cut off or no JSON"),
        (a_list, "list"),
    ],
)
def test_damaged_annotations(damage, message, own_data, tmp_path):
    name = own_data(damage)
    error = error_of(*options_for(name, tmp_path), "DATASETS.TEST", "()")
    check_message(error, [message, name])


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


def test_fewer_iterations_than_were_done(once_trained, own_data):
    folder = once_trained.with_name("longer")
    shutil.copytree(once_trained, folder)
    options = [*options_for(own_data(), folder), "DATASETS.TEST", "()"]
    main(parse_arguments(["--config-file", CONFIG, "--resume", *options, "SOLVER.MAX_ITER", "2"]))
    message = error_of("--resume", *options, "SOLVER.MAX_ITER", "1")
    check_message(message, ["SOLVER.MAX_ITER is 1", "model_final.pth has done 2 iterations"])


def test_resuming_needs_the_trainer(trained, own_data):
    """As detectron2's plain_train_net leaves it out: it would begin at iteration 1."""
    weights, folder = trained
    content = torch.load(weights, weights_only=True)
    torch.save({"model": content.get("model", content), "iteration": 499}, weights)
    message = error_of("--resume", *options_for(own_data(), folder))
    check_message(message, [str(weights), "of another trainer", "MODEL.WEIGHTS"])


def test_resuming_with_more_iterations(own_data, tmp_path):
    """Also with a schedule that ends with the training, and a rate that is another one now."""
    options = [*options_for(own_data(), tmp_path), "DATASETS.TEST", "()"]
    options += ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", "0"]
    main(parse_arguments(["--config-file", CONFIG, *options, "SOLVER.MAX_ITER", "2"]))
    words = ["--resume", *options, "SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "1e-5"]
    main(parse_arguments(["--config-file", CONFIG, *words]))
    metrics = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert metrics[-1]["iteration"] == 3 and 0 < metrics[-1]["lr"] < 1e-5


def test_a_folder_that_is_used_again(trained, own_data, caplog):
    """Nothing of it is lost, also where the training starts from what is there."""
    weights, folder = trained
    content = weights.read_bytes()
    options = [*options_for(own_data(), folder), "MODEL.WEIGHTS", str(weights)]
    error_of(*options, "SOLVER.BASE_LR", "1e30")
    assert f"of another training, which are in {folder}/previous-1 now" in caplog.text
    assert not weights.exists() and not (folder / "last_checkpoint").exists()
    assert (folder / "previous-1" / weights.name).read_bytes() == content


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


def png_images(source, folder, damage):
    """The images as PNGs under their names, of which `damage` changes the content."""
    folder.mkdir()
    for image in source.iterdir():
        Image.open(image).save(folder / image.name, format="PNG")
        content = bytearray((folder / image.name).read_bytes())
        damage(content)
        (folder / image.name).write_bytes(content)


def cut(content):
    del content[200:]


def spoil(content):
    """Where nothing looks before the pixels are read."""
    pixels = content.index(b"IDAT") + 10
    content[pixels : pixels + 40] = b"\xff" * 40


@pytest.mark.parametrize(
    "damage, workers, words", [(cut, "0", ["cut off"]), (spoil, "0", []), (spoil, "1", [])]
)
def test_unreadable_image(damage, workers, words, own_data, datasets, tmp_path):
    """The error of another process, which reads the images, is one line too."""
    images = tmp_path / "images"
    png_images(datasets / "digits_coco/train", images, damage)
    options = options_for(own_data(images=images), tmp_path / "out")
    options += ["DATALOADER.NUM_WORKERS", workers]
    run = setup if damage is cut else main
    check_message(error_of(*options, run=run), [str(images), "Replace the file", *words])


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
    config = "configs/DeepLab/deeplab_R_14_digits.yaml"
    options = [*options_for(mistaken_labels, tmp_path / "out"), "DATASETS.TEST", "()"]
    error = error_of(*options, config=config)
    check_message(error, ["_labelIds.png has the label 77 at 4096 pixels, expected 0..33"])
    error = error_of(*options, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "21", config=config)
    check_message(error, ["SEM_SEG_HEAD.NUM_CLASSES is 21", mistaken_labels, "19 classes"])
    check_message(error_of(*options), ["META_ARCHITECTURE RFCN finds objects", mistaken_labels])


def test_objects_where_pixels_have_classes(own_data, tmp_path):
    config = "configs/DeepLab/deeplab_R_14_digits.yaml"
    name = own_data()
    error = error_of(*options_for(name, tmp_path / "out"), config=config)
    check_message(error, ["DeepLab finds the classes of pixels", name])


def test_missing_config_file():
    check_message(error_of(config="configs/none.yaml"), ["configs/none.yaml"])


def test_output_folder_that_cannot_be_made(own_data):
    check_message(error_of(*options_for(own_data(), "/proc/nothing")), ["/proc/nothing"])


@pytest.mark.parametrize("flags", [[], ["--eval-only", "MODEL.WEIGHTS", "model.pth"]])
def test_data_without_keypoints(flags, own_data, tmp_path):
    name = own_data()
    options = [*options_for(name, tmp_path), "MODEL.KEYPOINT_ON", "True"]
    message = error_of(*flags, *options, config="Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml")
    check_message(message, ["MODEL.KEYPOINT_ON", f"data set {name} has no keypoint_names"])
