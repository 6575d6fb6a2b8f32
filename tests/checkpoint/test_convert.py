"""
Whole networks: the configs of all models take exactly the parameters of the originals, and
narrow ones of the same kind, converted, compute what the originals compute.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import convert_weights
from dcn_projects.checkpoint.mxnet import ModelOptions, convert_mxnet
from tests.checkpoint.original_networks import COUNTS, Original, bilinear_kernel
from tests.checkpoint.params_writer import write_params

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = {"R-FCN": "R-FCN", "Faster-R-CNN": "Faster R-CNN", "FPN": "FPN", "DeepLab": "DeepLab"}
LEAVES = [p for folder in FOLDERS for p in sorted((CONFIGS / folder).glob("*_R_101_*.yaml"))]
DETECTORS = [leaf for leaf in LEAVES if leaf.parent.name != "DeepLab"]
SEGMENTORS = [leaf for leaf in LEAVES if leaf.parent.name == "DeepLab"]
NARROW = [
    *("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RPN.CONV_DIMS", [32], "MODEL.ROI_HEADS.NUM_CLASSES", 3),
]
NARROW_HEADS = {
    "R-FCN": ["MODEL.ROI_BOX_HEAD.REDUCED_DIM", 64],
    "Faster R-CNN": ["MODEL.ROI_BOX_HEAD.REDUCED_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 64],
    "FPN": ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 64],
    "DeepLab": ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3],
}


def make_cfg(config: Path, *opts):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return cfg


def original_of(leaf: Path) -> Original:
    """The network of the original that a config describes, found by the config's name."""
    name = FOLDERS[leaf.parent.name]
    classes = 21 if "voc" in leaf.name else 19 if name == "DeepLab" else 81
    anchors = 3 if name == "FPN" else 15 if "_800" in leaf.name else 12 if classes == 81 else 9
    return Original(name, leaf.name.startswith("deformable"), classes, anchors)


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name):
    """As counted in the symbols of the original."""
    for deformable in (False, True):
        names = Original(name, deformable, classes=81, anchors=12).parameters()
        assert sum(n.startswith("arg:") for n in names) == COUNTS[name][deformable]
        assert sum(n.startswith("aux:") for n in names) == 208


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda p: p.stem)
def test_configs_take_the_parameters_of_the_originals(leaf):
    """With nothing unknown (but what is put in), missing or misshapen; by the rules of 2017."""
    original = original_of(leaf)
    cfg = make_cfg(leaf, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build_model(cfg).state_dict().items()}
    # All of this size, in no memory.
    arrays = {n: np.broadcast_to(np.float32(0), s) for n, s in original.parameters().items()}
    if original.name == "DeepLab":
        arrays["arg:upsampling_weight"] = bilinear_kernel(original.classes).numpy()
    options = ModelOptions(False, 49, (1, 1, 1, 1), (1, 1, 1, 1))
    with pytest.raises(ValueError) as error:
        convert_mxnet(arrays | {"arg:unknown": np.zeros(1)}, shapes, options)
    assert str(error.value).split("\n") == [
        f"an MXNet {original.name} that does not fit the model",
        "the model has no parameter for",
        "    arg:unknown",
    ]
    assert cfg.MODEL.RESNETS.DEFORM_LEGACY_BORDER == original.deformable


def random_arrays(shapes, seed=0):
    """Of a size that keeps activations near 1 and moves samples by about a cell."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if name == "arg:upsampling_weight":
            array = bilinear_kernel(shape[0]).numpy()
        elif name.endswith(("gamma", "moving_var")):
            array = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            array = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
            array *= 0.01 if name == "arg:conv1_weight" else 0.3 if "offset" in name else 1
        else:
            array = rng.uniform(-0.5, 0.5, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def picture():
    """(3, H, W), BGR, of a size that needs no padding."""
    return torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0))


# Of all levels of a pyramid, some beyond the picture.
ROIS = torch.tensor(
    [[0, 10, 20, 70, 81], [0, -8, 3, 127, 120], [0, 1, -90, 310, 95], [0, -200, -200, 300, 330]]
)


def predict(model, picture):
    """As in `Original.run`, in this project's layout."""
    images = model.preprocess_image([{"image": picture}])
    features = model.backbone(images.tensor)
    head = model.proposal_generator
    logits, rpn_deltas = head.rpn_head([features[f] for f in head.in_features])
    if hasattr(model.roi_heads, "score_maps"):
        maps = model.roi_heads.score_maps(features)
        scores, deltas = (model.roi_heads.vote(maps, ROIS.float(), k) for k in ("cls", "bbox"))
    else:
        outputs = []
        predictor = model.roi_heads.box_predictor
        handle = predictor.register_forward_hook(lambda *args: outputs.append(args[-1]))
        proposals = Instances((96, 128), proposal_boxes=Boxes(ROIS[:, 1:].float()))
        model.roi_heads._forward_box(features, [proposals])
        handle.remove()
        ((scores, deltas),) = outputs
    return logits, rpn_deltas, scores, deltas


def convert(leaf, input_format, classes, tmp_path):
    """A narrow model of a config, with the converted parameters of a narrow original, and these."""
    original = original_of(leaf)
    opts = [*NARROW, *NARROW_HEADS[original.name], "INPUT.FORMAT", input_format]
    if input_format == "RGB":
        opts += ["MODEL.PIXEL_MEAN", [123.15, 115.90, 103.06]]
    cfg = make_cfg(leaf, *opts)
    original = replace(original, classes=classes, units=(1, 1, 1, 1), shrink=16)
    arrays = random_arrays(original.parameters())
    write_params(tmp_path / "net.params", arrays, "V1")
    model = build_model(cfg).eval()
    shapes = {n: tuple(p.shape) for n, p in model.state_dict().items()}
    convert_weights(tmp_path / "net.params", tmp_path / "net.pth", cfg, shapes)
    DetectionCheckpointer(model).load(str(tmp_path / "net.pth"))
    return cfg, model, original, arrays


def as_read(picture, input_format):
    """The picture for a model, and for the original."""
    rgb = picture.flip(0)[None].double() - torch.tensor([123.15, 115.90, 103.06]).view(3, 1, 1)
    return picture if input_format == "BGR" else picture.flip(0), rgb


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
@pytest.mark.parametrize("leaf", DETECTORS, ids=lambda p: p.stem)
def test_converted_networks_compute_the_same(leaf, input_format, picture, tmp_path):
    cfg, model, original, arrays = convert(leaf, input_format, 4, tmp_path)
    seen, rgb = as_read(picture, input_format)
    with torch.no_grad():
        expected = original.run(arrays, rgb, ROIS.double())
        logits, rpn_deltas, scores, deltas = predict(model, seen)
    for level, logit in enumerate(logits):
        prob = expected["rpn_prob"][level]
        assert_close(logit.sigmoid(), prob[:, prob.shape[1] // 2 :])
        assert_close(rpn_deltas[level], expected["rpn_deltas"][level])
    assert_close(F.softmax(scores, dim=1).roll(1, dims=1), expected["cls_prob"])
    weights = torch.tensor(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS).repeat(deltas.shape[1] // 4)
    assert_close(deltas / weights, expected["deltas"][:, 4:])


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
@pytest.mark.parametrize("size", [(96, 128), (97, 114)], ids=str)
@pytest.mark.parametrize("leaf", SEGMENTORS, ids=lambda p: p.stem)
def test_converted_segmentors_compute_the_same(leaf, input_format, size, picture, tmp_path):
    _, model, original, arrays = convert(leaf, input_format, 3, tmp_path)
    seen, rgb = as_read(picture[:, : size[0], : size[1]], input_format)
    with torch.no_grad():
        expected = original.run(arrays, rgb, None)["scores"]
        (output,) = model([{"image": seen}])
    assert_close(output["sem_seg"], expected[0])


def assert_close(actual, expected):
    """Relative to the largest value; and it is not all the same."""
    assert expected.std() > 0.01
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-4
