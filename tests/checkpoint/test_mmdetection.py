"""mmdetection's names, written down once more, and the settings that its files ask for."""

import numpy as np
import pytest
import torch

from dcn_projects.checkpoint import convert_weights, training_only_names
from dcn_projects.checkpoint.mmdetection import style_in_config
from dcn_projects.engine import read_config
from tests.checkpoint.narrow_models import meta_model, shapes_of

NARROW = """
    MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_deform_resnet_fpn_backbone MODEL.RESNETS.DEPTH 14
    MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.FPN.OUT_CHANNELS 8
    MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 8
    MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.RESNETS.STRIDE_IN_1X1 False
    MODEL.PIXEL_STD [57.375,57.12,58.395]
""".split()
CAFFE = "MODEL.RESNETS.STRIDE_IN_1X1 True MODEL.PIXEL_STD [1.0,1.0,1.0]".split()
CONFIGS = {
    "plain": "Mask-RCNN/faster_rcnn_R_50_FPN_2x.yaml",
    "mask": "Mask-RCNN/mask_rcnn_R_50_FPN_2x.yaml",
    "DCN": "DCNv2/faster_rcnn_R_50_FPN_1x_dconv_c3c5.yaml",
    "DCNv2": "DCNv2/mask_rcnn_R_50_FPN_1x_mdconv_c3c5.yaml",
    "Dynamic R-CNN": "Dynamic-RCNN/dynamic_rcnn_R_50_FPN_1x.yaml",
}
NORM = ("weight", "bias", "running_mean", "running_var")


def names_of(deformable, mask):
    """mmdetection's name -> ours, of bottlenecks with one block in each stage."""
    pairs = {"backbone.conv1.weight": "backbone.bottom_up.stem.conv1.weight"}
    pairs |= {f"backbone.bn1.{k}": f"backbone.bottom_up.stem.conv1.norm.{k}" for k in NORM}
    for layer, stage in ((1, "res2"), (2, "res3"), (3, "res4"), (4, "res5")):
        theirs, ours = f"backbone.layer{layer}.0.", f"backbone.bottom_up.{stage}.0."
        for i in "123":
            pairs[f"{theirs}conv{i}.weight"] = f"{ours}conv{i}.weight"
            pairs |= {f"{theirs}bn{i}.{k}": f"{ours}conv{i}.norm.{k}" for k in NORM}
        pairs[f"{theirs}downsample.0.weight"] = f"{ours}shortcut.weight"
        pairs |= {f"{theirs}downsample.1.{k}": f"{ours}shortcut.norm.{k}" for k in NORM}
        if deformable and layer > 1:
            for k in ("weight", "bias"):
                pairs[f"{theirs}conv2.conv_offset.{k}"] = f"{ours}conv2.conv_offset.{k}"
    layers = {
        "neck.lateral_convs.0.conv": "backbone.fpn_lateral2",
        "neck.lateral_convs.1.conv": "backbone.fpn_lateral3",
        "neck.lateral_convs.2.conv": "backbone.fpn_lateral4",
        "neck.lateral_convs.3.conv": "backbone.fpn_lateral5",
        "neck.fpn_convs.0.conv": "backbone.fpn_output2",
        "neck.fpn_convs.1.conv": "backbone.fpn_output3",
        "neck.fpn_convs.2.conv": "backbone.fpn_output4",
        "neck.fpn_convs.3.conv": "backbone.fpn_output5",
        "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
        "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
        "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
        "roi_head.bbox_head.shared_fcs.0": "roi_heads.box_head.fc1",
        "roi_head.bbox_head.shared_fcs.1": "roi_heads.box_head.fc2",
        "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
        "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    }
    if mask:
        layers |= {
            "roi_head.mask_head.convs.0.conv": "roi_heads.mask_head.mask_fcn1",
            "roi_head.mask_head.convs.1.conv": "roi_heads.mask_head.mask_fcn2",
            "roi_head.mask_head.convs.2.conv": "roi_heads.mask_head.mask_fcn3",
            "roi_head.mask_head.convs.3.conv": "roi_heads.mask_head.mask_fcn4",
            "roi_head.mask_head.upsample": "roi_heads.mask_head.deconv",
            "roi_head.mask_head.conv_logits": "roi_heads.mask_head.predictor",
        }
    for theirs, ours in layers.items():
        pairs |= {f"{theirs}.{k}": f"{ours}.{k}" for k in ("weight", "bias")}
    return pairs


def make(kind, *opts):
    """A config, the state of its model, and mmdetection's names for it."""
    cfg = read_config(CONFIGS[kind], [*NARROW, *opts])
    rng = np.random.default_rng(0)
    ours = {
        name: torch.from_numpy(rng.random(shape, np.float32))
        for name, shape in shapes_of(cfg).items()
        if not name.startswith("roi_heads.dynamic.")
    }
    names = names_of("DCN" in kind, cfg.MODEL.MASK_ON)
    assert set(names.values()) == set(ours)
    state = {theirs: ours[name] for theirs, name in names.items()}
    counters = {n.replace("running_var", "num_batches_tracked") for n in state if "_var" in n}
    return cfg, ours, state | {name: torch.tensor(7) for name in counters}


def convert(state, cfg, tmp_path, config="model = dict(backbone=dict(style='pytorch'))"):
    content = {"meta": {"config": config, "epoch": 12}, "state_dict": state}
    torch.save(content, tmp_path / "a.pth")
    model = meta_model(cfg)
    names = training_only_names(model)
    result = convert_weights(
        tmp_path / "a.pth", tmp_path / "b.pth", cfg, shapes_of(cfg), training_only=names
    )
    return *result, torch.load(tmp_path / "b.pth")["model"]


STEM = "backbone.bottom_up.stem.conv1.weight"


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_array_finds_its_parameter(kind, tmp_path):
    """Classes and offsets have the order of here; the colours are RGB there."""
    cfg, ours, state = make(kind)
    found, settings, params = convert(state, cfg, tmp_path)
    assert found == "mmdetection detector, style pytorch"
    assert params.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(params[name], value.flip(1) if name == STEM else value), name
    expected = {f"MODEL.ROI_{h}_HEAD.POOLER_SAMPLING_RATIO": 0 for h in ("BOX", "MASK")}
    assert all(expected.get(key, 0) == value for key, value in settings.items() if "RATIO" in key)
    assert kind != "plain" or settings == {"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0}


def test_old_names_of_offset_layers(tmp_path):
    cfg, ours, state = make("DCNv2")
    state = {name.replace("conv2.conv_offset", "conv2_offset"): v for name, v in state.items()}
    *_, params = convert(state, cfg, tmp_path)
    name = "backbone.bottom_up.res4.0.conv2.conv_offset.weight"
    assert len(params[name]) == 27 and torch.equal(params[name], ours[name])


@pytest.mark.parametrize("config", ["backbone=dict(style='caffe')", '"style": "caffe"'])
def test_networks_of_caffe_read_bgr(config, tmp_path):
    cfg, ours, state = make("plain", *CAFFE)
    found, _, params = convert(state, cfg, tmp_path, config)
    assert found == "mmdetection detector, style caffe" and torch.equal(params[STEM], ours[STEM])
    cfg, _, _ = make("plain")
    with pytest.raises(ValueError, match=r"PIXEL_STD is .*, but the weights are for \[1.0, 1.0"):
        convert(state, cfg, tmp_path, config)
    cfg, _, _ = make("plain", *CAFFE)
    with pytest.raises(ValueError, match=r"PIXEL_STD is \[1.0, 1.0, 1.0\], but"):
        convert(state, cfg, tmp_path)
    cfg, _, _ = make("plain", "MODEL.RESNETS.STRIDE_IN_1X1", "True")
    with pytest.raises(ValueError, match="STRIDE_IN_1X1 is True, but the weights are for False"):
        convert(state, cfg, tmp_path)


@pytest.mark.parametrize("opts, style", [([], "pytorch"), (CAFFE, "caffe")])
def test_files_without_a_config(opts, style, tmp_path):
    cfg, _, state = make("plain", *opts)
    found, *_ = convert(state, cfg, tmp_path, config="")
    told = f"mmdetection detector, style {style} as in the config, since the file does not tell"
    assert found == told
    assert style_in_config("") == style_in_config("schedule = '1x'") == ""


def test_what_does_not_fit(tmp_path):
    cfg, _, state = make("plain")

    def fails(state):
        with pytest.raises(ValueError) as error:
            convert(state, cfg, tmp_path)
        return str(error.value)

    old = {name.removeprefix("roi_head."): value for name, value in state.items()}
    assert "it is of mmdetection 1" in fails(old) and "upgrade_model_version" in fails(old)
    del state["rpn_head.rpn_cls.bias"]
    state["neck.fpn_convs.4.conv.weight"] = torch.zeros(8, 8, 3, 3)
    state["roi_head.bbox_head.fc_reg.bias"] = torch.zeros(16)
    message = fails(state)
    assert "an mmdetection detector that does not fit the model" in message
    assert "no parameter for\n    neck.fpn_convs.4.conv.weight" in message
    assert "fc_reg.bias is float32 (16,), expected float (12,)" in message
    assert "no array for\n    proposal_generator.rpn_head.objectness_logits.bias" in message
