"""
maskrcnn-benchmark's files, and those of code that is built on it: which names they have, what
becomes of each array, and narrow networks that, converted, compute what the originals compute.
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import convert_weights, load_trained, training_only_names
from dcn_projects.checkpoint.maskrcnn_benchmark import convert_maskrcnn_benchmark
from dcn_projects.checkpoint.original_settings import (
    check_pixels,
    check_stride,
    differences,
    heads_settings,
)
from dcn_projects.checkpoint.pth import read_pth
from tests.checkpoint.maskrcnn_benchmark_networks import MaskRCNNBenchmark
from tests.checkpoint.narrow_models import (
    check_outputs,
    make_cfg,
    meta_model,
    narrow_opts,
    shapes_of,
    zeros,
)

CONFIGS = Path(__file__).parents[2] / "configs"
BOX, MASK = "COCO-Detection/faster_rcnn_R_50_", "COCO-InstanceSegmentation/mask_rcnn_R_50_"
GN = """
    MODEL.RESNETS.NORM GN MODEL.RESNETS.STRIDE_IN_1X1 False MODEL.FPN.NORM GN
    MODEL.ROI_BOX_HEAD.NORM GN MODEL.ROI_BOX_HEAD.NUM_CONV 4 MODEL.ROI_BOX_HEAD.NUM_FC 1
    MODEL.ROI_MASK_HEAD.NORM GN
""".split()
XCONVS = "MODEL.ROI_BOX_HEAD.NUM_CONV 4 MODEL.ROI_BOX_HEAD.NUM_FC 1".split()
DCN = [
    *("MODEL.BACKBONE.NAME", "build_deform_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
]
DCN_V2 = [*DCN, "MODEL.RESNETS.DEFORM_MODULATED", True]
MEAN = ["MODEL.PIXEL_MEAN", [102.9801, 115.9465, 122.7717]]
AGNOSTIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
R101 = dict(units=(3, 4, 23, 3))
# name: (number of arrays, arguments of the original, detectron2's config, what differs)
MODELS = {
    "FPN Mask": (312, dict(fpn=True, mask=True), MASK + "FPN_1x", []),
    "FPN agnostic": (300, dict(fpn=True, mask=False, agnostic=True), BOX + "FPN_1x", AGNOSTIC),
    "C4 Mask": (330, dict(fpn=False, mask=True, anchors=15), MASK + "C4_1x", []),
    "C4 Faster": (276, dict(fpn=False, mask=False, anchors=15), BOX + "C4_1x", []),
    "FPN Mask GN": (228, dict(fpn=True, mask=True, gn=True, xconvs=True), MASK + "FPN_1x", GN),
    "FPN Mask 4conv1fc": (318, dict(fpn=True, mask=True, xconvs=True), MASK + "FPN_1x", XCONVS),
    "FPN Mask DCNv1": (338, dict(fpn=True, mask=True, dcn="v1"), MASK + "FPN_1x", DCN),
    "FPN Mask DCNv2": (338, dict(fpn=True, mask=True, dcn="v2"), MASK + "FPN_1x", DCN_V2),
    "Dynamic R-CNN": (300, dict(fpn=True, mask=False, flat=True), BOX + "FPN_1x", []),
    "Dynamic R-CNN DCNv2": (
        615, dict(fpn=True, mask=False, flat=True, dcn="v2", **R101), BOX + "FPN_1x",
        [*DCN_V2, "MODEL.RESNETS.DEPTH", 101],
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_configs_take_the_arrays_of_the_originals(model):
    """With nothing unknown (but what is put in), missing or misshapen."""
    count, arguments, config, opts = MODELS[model]
    original = MaskRCNNBenchmark(**arguments)
    arrays = zeros(original.parameters())
    assert len(arrays) == count
    ones = {n: np.broadcast_to(np.float32(1), a.shape) for n, a in arrays.items() if "_var" in n}
    arrays |= ones | {"unknown.weight": np.zeros((1, 1))}
    with pytest.raises(ValueError) as error:
        convert_maskrcnn_benchmark(
            arrays, shapes_of(make_cfg(config, *opts)), True, range(original.anchors)
        )
    what = "Dynamic R-CNN" if original.flat else "maskrcnn-benchmark detector"
    assert str(error.value).split("\n") == [
        f"a {what} that does not fit the model",
        "the model has no parameter for",
        "    unknown.weight",
    ]


def random_arrays(shapes, seed=0):
    """Of a size that keeps activations near 1 and moves samples by about a cell."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if "running_var" in name or name.endswith("weight") and len(shape) == 1:
            array = rng.uniform(0.5, 1.5, shape)
            array[0] = 2e-5 if "running_var" in name else 1e-3  # where an epsilon matters
        elif name.endswith("weight"):
            array = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
            array *= 0.01 if "stem" in name else 0.3 if "offset" in name else 1
        else:
            array = rng.uniform(-0.5, 0.5, shape)
        arrays[name] = array.astype(np.float32)
    for name in arrays:  # of which the file has two
        if name.startswith("roi_heads.mask.feature_extractor.head"):
            arrays[name] = arrays[name.replace("mask", "box")]
    return arrays


def narrow(model, *opts):
    """The original and the config of a network of the same kind, with few blocks and channels."""
    _, arguments, config, model_opts = MODELS[model]
    channels = dict(stem=32, width=32, dim=32) if "GN" in model else dict(stem=4, width=4, dim=8)
    arguments = arguments | dict(classes=4, fc=24, **channels)
    original = MaskRCNNBenchmark(**arguments | dict(units=(1, 1, 1, 1 if arguments["fpn"] else 3)))
    rpn = original.dim if original.fpn else original.width * 16
    cfg = make_cfg(config, *MEAN, *model_opts, *narrow_opts(original, rpn), *opts)
    return original, cfg


def convert(cfg, arrays, tmp_path):
    """A model of the config, with the arrays of a checkpoint of distributed training."""
    state = OrderedDict((f"module.{n}", torch.from_numpy(a)) for n, a in arrays.items())
    schedule = {"milestones": [1, 2], "last_epoch": 3}
    training = {"optimizer": {"state": {}}, "scheduler": schedule, "iteration": 3}
    torch.save({"model": state, **training}, tmp_path / "net.pth")
    model = build_model(cfg).eval()
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    convert_weights(tmp_path / "net.pth", tmp_path / "net.pkl", cfg, shapes)
    load_trained(model, str(tmp_path / "net.pkl"))
    return model


@pytest.mark.parametrize("model", MODELS)
def test_converted_networks_compute_the_same(model, tmp_path):
    original, cfg = narrow(model)
    arrays = random_arrays(original.parameters())
    order = None
    if not original.fpn:  # five sizes of three ratios there, three ratios of five sizes here
        order = [0, 5, 10, 1, 6, 11, 2, 7, 12, 3, 8, 13, 4, 9, 14]
    check_outputs(original, convert(cfg, arrays, tmp_path), arrays, anchor_order=order)


def test_a_model_that_reads_rgb(tmp_path):
    rgb = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [122.7717, 115.9465, 102.9801]]
    original, cfg = narrow("Dynamic R-CNN", *rgb)
    arrays = random_arrays(original.parameters())
    check_outputs(original, convert(cfg, arrays, tmp_path), arrays, "RGB")


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_norms_that_are_not_frozen(norm, tmp_path):
    """BatchNorm counts batches, and adds its epsilon to the variance there as well as here."""
    original, cfg = narrow("FPN Mask", "MODEL.RESNETS.NORM", norm)
    arrays = random_arrays(original.parameters())
    arrays["backbone.body.layer1.0.bn2.running_var"][0] = 0
    with_eps = {n: a + np.float32(1e-5) if "running_var" in n else a for n, a in arrays.items()}
    for name in [n for n in arrays if n.endswith("running_var")]:
        arrays[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    model = convert(cfg, arrays, tmp_path)
    check_outputs(original, model, with_eps)
    variance = "backbone.bottom_up.res2.0.conv2.norm.running_var"
    np.testing.assert_array_equal(
        model.state_dict()[variance], arrays["backbone.body.layer1.0.bn2.running_var"]
    )


def convert_to(model, arrays):
    original, cfg = narrow(model)
    return convert_maskrcnn_benchmark(arrays, shapes_of(cfg), True, range(original.anchors))


def source(model):
    return random_arrays(narrow(model)[0].parameters())


def test_anchors_of_a_generator_that_has_ratios_first(tmp_path):
    original, cfg = narrow(
        "C4 Faster", "MODEL.ANCHOR_GENERATOR.NAME", "PyFasterRCNNAnchorGenerator"
    )
    arrays = random_arrays(original.parameters())
    check_outputs(original, convert(cfg, arrays, tmp_path), arrays)


def test_copies_are_compared():
    arrays = source("C4 Mask")
    copy = "roi_heads.mask.feature_extractor.head.layer4.0.conv1.weight"
    arrays[copy] = arrays[copy] + 1
    with pytest.raises(ValueError, match=f"{copy} is not equal to {copy.replace('mask', 'box')}"):
        convert_to("C4 Mask", arrays)


def test_all_that_is_wrong_is_listed():
    arrays = source("FPN Mask")
    arrays["fc6.weight"] = arrays["roi_heads.box.feature_extractor.fc6.weight"]
    arrays["backbone.body.layer1.0.gn4.weight"] = np.ones(4, np.float32)
    arrays["backbone.body.layer1.1.conv1.weight"] = np.ones(4, np.float32)
    arrays["backbone.fpn.fpn_inner1.0.bias"] = arrays.pop("backbone.fpn.fpn_inner1.bias")
    arrays["backbone.body.stem.bn1.running_var"] = np.float32([1, 1, 0, 1])
    arrays["rpn.anchor_generator.cell_anchors.0"] = np.zeros((15, 4), np.float32)
    arrays["rpn.head.conv.bias"] = np.zeros(8, np.int64)
    del arrays["roi_heads.mask.predictor.mask_fcn_logits.bias"]
    with pytest.raises(ValueError) as error:
        convert_to("FPN Mask", arrays)
    assert str(error.value).split("\n") == [
        "a maskrcnn-benchmark detector that does not fit the model",
        "res2 has 2 blocks in the file and 1 in the config: MODEL.RESNETS.DEPTH",
        "the model has no parameter for",
        "    backbone.body.layer1.0.gn4.weight",
        "    backbone.body.layer1.1.conv1.weight (as backbone.bottom_up.res2.1.conv1.weight)",
        "    backbone.fpn.fpn_inner1.0.bias",
        "these arrays are not what they should be",
        "    fc6.weight is roi_heads.box.feature_extractor.fc6.weight, as another array is",
        "    backbone.body.stem.bn1.running_var has variances below 1e-05",
        "    rpn.head.conv.bias is int64 (8,), expected float (8,)",
        "    rpn.anchor_generator.cell_anchors.0 (15, 4) is not that of a maskrcnn-benchmark "
        "detector",
        "the file has no array for",
        "    backbone.fpn_lateral2.bias",
        "    roi_heads.mask_head.predictor.bias",
    ]


@pytest.mark.parametrize("file,config", [(101, 50), (50, 101), (152, 50)])
def test_resnets_of_another_depth(file, config):
    """17 blocks of 3 convolutions with norms of 4 arrays; the message stays readable."""
    blocks = {50: (4, 6), 101: (4, 23), 152: (8, 36)}
    units = (3, *blocks[file], 3)
    original = MaskRCNNBenchmark(fpn=True, mask=True, units=units, stem=1, width=1, dim=1, fc=1)
    arrays = {n: np.broadcast_to(np.float32(1), s) for n, s in original.parameters().items()}
    opts = [*narrow_opts(original, 1), "MODEL.RESNETS.DEPTH", config]
    with pytest.raises(ValueError) as error:
        convert_maskrcnn_benchmark(
            arrays, shapes_of(make_cfg(MASK + "FPN_1x", *opts)), True, range(original.anchors)
        )
    _, *lines = str(error.value).split("\n")
    stages = [
        f"{stage} has {theirs} blocks in the file and {ours} in the config: MODEL.RESNETS.DEPTH"
        for stage, theirs, ours in zip(("res3", "res4"), blocks[file], blocks[config])
        if theirs != ours
    ]
    problem = "the model has no parameter for" if file > config else "the file has no array for"
    assert lines[: len(stages) + 1] == [*stages, problem]
    more = 15 * abs(sum(blocks[file]) - sum(blocks[config])) - 5
    assert len(lines) == len(stages) + 7 and lines[-1] == f"    and {more} more"


def test_fully_connected_layers_with_gn():
    arrays = source("FPN Mask")
    fc6 = "roi_heads.box.feature_extractor.fc6"
    arrays[f"{fc6}.0.weight"] = arrays.pop(f"{fc6}.weight")
    arrays[f"{fc6}.1.weight"] = arrays.pop(f"{fc6}.bias")
    with pytest.raises(ValueError, match="fc6.1 is GroupNorm .* detectron2 has no head like that"):
        convert_to("FPN Mask", arrays)


BODY, RES = "backbone.body.layer4.0.", "backbone.res5.0."
# Of TreB1eN's code of DCNv2: array, its shape, our parameter, its shape.
DCN_V2_HEADS = [
    (BODY + "conv2.weight", (4, 18), RES + "conv2.weight", (4, 2, 3, 3)),
    (BODY + "gn2.weight", (4,), RES + "conv2.norm.weight", (4,)),
    (BODY + "downsample.1.bias", (4,), RES + "shortcut.norm.bias", (4,)),
    ("roi_heads.conv.weight", (3, 4, 1, 1), "roi_heads.conv_new.weight", (3, 4, 1, 1)),
    ("roi_heads.conv.bias", (3,), "roi_heads.conv_new.bias", (3,)),
    *(
        (
            f"roi_heads.{head}.feature_extractor.pooler.linear_deform_{i + 1}.weight", (6, i + 1),
            f"roi_heads.{head}_pooler.offset_mask_fc.0.{2 * i}.weight", (6, i + 1),
        )
        for head in ("box", "mask") for i in range(3)
    ),
    ("roi_heads.box.predictor.linear1.bias", (5,), "roi_heads.box_head.fc1.bias", (5,)),
    ("roi_heads.box.predictor.linear2.bias", (5,), "roi_heads.box_head.fc2.bias", (5,)),
    ("roi_heads.mask.predictor.conv.bias", (3,), "roi_heads.mask_head.mask_fcn1.bias", (3,)),
]  # fmt: skip


def test_dcn_v2_of_tre_b1e_n():
    """Its names and shapes, also those that it has twice because modules share others."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape) for name, shape, *_ in DCN_V2_HEADS}
    arrays[BODY + "conv2.offset_conv.weight"] = rng.normal(size=(18, 2, 3, 3))
    arrays[BODY + "conv2.mask_conv.weight"] = rng.normal(size=(9, 2, 3, 3))
    classifier = rng.normal(size=4)
    arrays["mimicking_head.mimicking_cls_score.bias"] = classifier
    shared = {"backbone.": "backbone.", "roi_heads.box.": "box.", "roi_heads.conv.": "conv."}
    arrays |= {
        "mimicking_head." + copy + name.removeprefix(original): array
        for original, copy in shared.items()
        for name, array in arrays.items()
        if name.startswith(original)
    }
    shapes = {target: shape for *_, target, shape in DCN_V2_HEADS}
    offsets = {
        RES + "conv2.conv_offset.weight": (27, 2, 3, 3),
        RES + "conv2.conv_offset.bias": (27,),
    }
    shapes |= offsets
    network, params = convert_maskrcnn_benchmark(arrays, shapes, True, range(15))
    assert network == "DCNv2 detector of TreB1eN" and params.keys() == shapes.keys()
    for name, _, target, shape in DCN_V2_HEADS:
        np.testing.assert_array_equal(params[target], np.float32(arrays[name]).reshape(shape))
    offset, mask = np.split(params[RES + "conv2.conv_offset.weight"], [18])
    np.testing.assert_array_equal(offset, np.float32(arrays[BODY + "conv2.offset_conv.weight"]))
    np.testing.assert_array_equal(mask, np.float32(arrays[BODY + "conv2.mask_conv.weight"]))
    assert not params[RES + "conv2.conv_offset.bias"].any()

    mimic = shapes | {"mimic_score.bias": (4,), "mimic_score.weight": (4, 5)}
    arrays["mimicking_head.mimicking_cls_score.weight"] = rng.normal(size=(4, 5))
    _, params = convert_maskrcnn_benchmark(arrays, mimic, True, range(15))
    np.testing.assert_array_equal(params["mimic_score.bias"], np.float32(np.roll(classifier, -1)))

    del arrays[BODY + "conv2.mask_conv.weight"]
    with pytest.raises(ValueError, match=r"no parameter for\n.*layer4.0.conv2.offset_conv.weight"):
        convert_maskrcnn_benchmark(arrays, shapes, True, range(15))


@pytest.fixture
def pth(tmp_path):
    def write(content, **options):
        torch.save(content, tmp_path / "a.pth", **options)
        return tmp_path / "a.pth"

    return write


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_is_read_without_classes(pth, zipped):
    state = OrderedDict(a=torch.ones(2), b=torch.zeros(3, dtype=torch.float16))
    zipped = dict(_use_new_zipfile_serialization=zipped)
    for content in (state, {"model": state, "optimizer": {"state": {}}, "iteration": 7}):
        found = read_pth(pth(content, **zipped))
        assert list(found) == ["a", "b"] and found["a"].tolist() == [1, 1]
    evil = argparse.Namespace(x=1)
    for content in ({"model": state, "args": evil}, evil):
        with pytest.raises(
            ValueError, match=r"a\.pth holds objects of argparse.Namespace\. "
        ) as error:
            read_pth(pth(content, **zipped))
        assert "\n" not in str(error.value)
    repeated = torch.ones(1).expand(10**6)
    with pytest.raises(ValueError, match=r"a\.pth holds objects of .*_sparse_tensor. Only dense"):
        read_pth(pth({"b": torch.ones(1).to_sparse()}, **zipped))
    for value in (3, [1], repeated, torch.ones(1, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"a\.pth: these are no dense tensors of numbers: b$"):
            read_pth(pth({"a": torch.ones(1), "b": value}, **zipped))
    with pytest.raises(ValueError, match=r"a\.pth: it has tensors of the same name, with and"):
        read_pth(pth({"a": torch.ones(1), "module.a": torch.ones(1)}, **zipped))
    with pytest.raises(ValueError, match=r"a\.pth: a Tensor is not the state of a model"):
        read_pth(pth(torch.ones(2), **zipped))


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pth(pth, zipped):
    path = pth({"a": torch.ones(1000)}, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in (0, 2, 40, 500, 3000, len(content) - 100):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.pth is (cut off|not a checkpoint)") as error:
            read_pth(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("leaf", ["R_50_FPN_1x", "R_101_DCNv2_FPN_3x_multiscale"])
def test_configs_of_dynamic_rcnn(leaf):
    """They take its files, with its settings; the thresholds are not in them."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(CONFIGS / f"Dynamic-RCNN/dynamic_rcnn_{leaf}.yaml")
    units, dcn = ((3, 4, 23, 3), "v2") if "101" in leaf else ((3, 4, 6, 3), "")
    original = MaskRCNNBenchmark(True, False, flat=True, units=units, dcn=dcn)
    ones = {n: np.broadcast_to(np.float32(1), s) for n, s in original.parameters().items()}
    names = training_only_names(meta_model(cfg))
    assert "roi_heads.dynamic.window" in names
    with pytest.raises(ValueError, match=r"model\nthe model has no parameter for\n    unknown$"):
        convert_maskrcnn_benchmark(
            ones | {"unknown": np.ones(1)}, shapes_of(cfg), True, range(original.anchors), names
        )
    check_pixels(cfg, (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0))
    check_stride(cfg, in_1x1=True)
    differing = differences(cfg, heads_settings(cfg, "ROIAlign", legacy_anchors=True))
    assert all(key.startswith("MODEL.ANCHOR_GENERATOR.") for key in differing)
