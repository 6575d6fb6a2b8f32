import logging

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from detectron2.modeling.backbone.resnet import build_resnet_backbone

from dcn_projects import add_dcn_config
from dcn_projects.config import add_deform_resnet_config
from dcn_projects.layers import DeformableConv2d
from dcn_projects.modeling import (
    DeformBottleneckBlock,
    build_deform_resnet_backbone,
    build_deform_resnet_fpn_backbone,
    renamed_parameters,
)
from dcn_projects.modeling.backbone import CeilPoolStem

RGB = ShapeSpec(channels=3)


def make_cfg(**resnets):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.RESNETS.update(
        dict(
            DEPTH=50,
            OUT_FEATURES=["res2", "res3", "res4", "res5"],
            STEM_OUT_CHANNELS=8,
            RES2_OUT_CHANNELS=16,
            WIDTH_PER_GROUP=8,
            NORM="BN",
            **resnets,
        )
    )
    return cfg


def renamed_shapes(weights):
    """Shapes of detectron2's parameters, by their names here."""
    return {k.replace("conv2_offset", "conv2.conv_offset"): v.shape for k, v in weights.items()}


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(RES5_DILATION=2),
        dict(DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_NUM_GROUPS=2),
        dict(DEFORM_ON_PER_STAGE=[False, False, False, True], DEFORM_MODULATED=True),
        dict(NUM_GROUPS=4, WIDTH_PER_GROUP=4, STRIDE_IN_1X1=False),
    ],
    ids=str,
)
def test_parameters_are_those_of_detectron2(options):
    if "DEFORM_ON_PER_STAGE" in options:
        pytest.importorskip("detectron2._C", reason="detectron2's DeformConv needs it")
    cfg = make_cfg()
    cfg.MODEL.RESNETS.update(options)
    ours = build_deform_resnet_backbone(cfg, RGB).state_dict()
    theirs = build_resnet_backbone(cfg, RGB).state_dict()
    assert {k: v.shape for k, v in ours.items()} == renamed_shapes(theirs)


def test_fpn_parameters_are_those_of_detectron2():
    pytest.importorskip("detectron2._C", reason="detectron2's DeformConv needs it")
    cfg = make_cfg(DEFORM_ON_PER_STAGE=[False, True, True, True])
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    ours = build_deform_resnet_fpn_backbone(cfg, RGB)
    theirs = build_resnet_fpn_backbone(cfg, RGB)
    expected = renamed_shapes(theirs.state_dict())
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize("modulated, mask_scale", [(False, 1), (True, 1), (True, 2)])
def test_zero_offsets_change_nothing(modulated, mask_scale):
    """At the start of training the deformable network is the plain one. A mask of sigmoid(0)
    halves the 3x3 convolution, which a mask scale of 2 or doubled weights make up for."""
    torch.manual_seed(0)
    plain = build_deform_resnet_backbone(make_cfg(RES5_DILATION=2), RGB).double().eval()
    options = dict(DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_MODULATED=modulated)
    options["DEFORM_MASK_SCALE"] = mask_scale
    deform = build_deform_resnet_backbone(make_cfg(RES5_DILATION=2, **options), RGB)
    deform.double().eval()
    deform.load_state_dict(plain.state_dict(), strict=False)
    if modulated and mask_scale == 1:
        for name, p in deform.named_parameters():
            if name.endswith("conv2.weight") and not name.startswith("res2"):
                p.data *= 2
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = plain(x), deform(x)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


@pytest.mark.parametrize("load", ["strict", "checkpointer"])
def test_old_names_of_parameters_load(load, tmp_path, caplog, monkeypatch):
    """Those of detectron2, and of version 0.1 of this project."""
    cfg = make_cfg(DEFORM_ON_PER_STAGE=[False, False, True, True], DEFORM_MODULATED=True)
    weights = {}
    for name, p in build_deform_resnet_backbone(cfg, RGB).state_dict().items():
        weights[name.replace("conv2.conv_offset", "conv2_offset")] = torch.rand(p.shape)
    assert "res5.2.conv2_offset.weight" in weights
    monkeypatch.setattr(renamed_parameters, "_LOGGED", set())
    model = build_deform_resnet_backbone(cfg, RGB)
    with caplog.at_level(logging.INFO):
        if load == "strict":
            model.load_state_dict(weights)
        else:
            torch.save({"model": weights}, tmp_path / "old.pth")
            DetectionCheckpointer(model).load(str(tmp_path / "old.pth"))
    loaded = model.state_dict()
    for name in ("res5.2.conv2_offset.weight", "res4.0.conv2_offset.bias", "res5.2.conv2.weight"):
        new_name = name.replace("conv2_offset", "conv2.conv_offset")
        assert torch.equal(loaded[new_name], weights[name])
    # One line for all of them.
    (line,) = [line for line in caplog.messages if "old names" in line]
    assert "res4.0.conv2_offset.weight is res4.0.conv2.conv_offset.weight now" in line
    assert "not found in the checkpoint" not in caplog.text


def test_frozen_blocks():
    """Stages that are frozen learn no offsets, and their norms have fixed statistics."""
    cfg = make_cfg(DEFORM_ON_PER_STAGE=[True] * 4)
    cfg.MODEL.BACKBONE.FREEZE_AT = 3
    model = build_deform_resnet_backbone(cfg, RGB)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learns} == {"res4", "res5"}
    assert "res4.0.conv2.conv_offset.weight" in learns
    assert isinstance(model.res3[0].conv2, DeformableConv2d)
    assert isinstance(model.res3[0].conv2.norm, FrozenBatchNorm2d)
    assert isinstance(model.res4[0].conv2.norm, torch.nn.BatchNorm2d)


def test_gradient_reaches_the_offsets():
    options = dict(DEFORM_ON_PER_STAGE=[False, False, True, True], DEFORM_MODULATED=True)
    model = build_deform_resnet_backbone(make_cfg(**options), RGB)
    model(torch.randn(1, 3, 64, 64))["res5"].square().sum().backward()
    for name, p in model.named_parameters():
        if "conv2.conv_offset" in name:
            assert p.grad.abs().sum() > 0, name


def test_only_the_last_blocks_of_a_stage():
    options = dict(DEFORM_ON_PER_STAGE=[False, True, True, True], DEFORM_LAST_BLOCKS=[0, 1, 2, 0])
    model = build_deform_resnet_backbone(make_cfg(**options), RGB)
    deformable = [name for name, m in model.named_modules() if isinstance(m, DeformBottleneckBlock)]
    assert deformable == ["res3.3", "res4.4", "res4.5", "res5.0", "res5.1", "res5.2"]
    plain = build_resnet_backbone(make_cfg(), RGB).state_dict()
    ours = {k: v.shape for k, v in model.state_dict().items() if "conv2.conv_offset" not in k}
    assert ours == {k: v.shape for k, v in plain.items()}


@pytest.mark.parametrize("size", [32, 33, 34, 35, 600])
def test_ceil_pool_stem_size(size):
    stem = CeilPoolStem(3, 4, norm="")
    conv1 = (size - 1) // 2 + 1
    expected = 1 + -(-(conv1 - 3) // 2)
    assert stem(torch.zeros(1, 3, size, size)).shape[-1] == expected


def test_offsets_that_start_at_random():
    """Uniform with the variance 1 / fan-in, the biases zero."""
    cfg = make_cfg(DEFORM_ON_PER_STAGE=[False] * 3 + [True], DEFORM_OFFSET_INIT="kaiming_uniform")
    layer = build_deform_resnet_backbone(cfg, RGB).res5[0].conv2.conv_offset
    fan_in = layer.weight[0].numel()
    assert layer.weight.abs().max() <= (3 / fan_in) ** 0.5
    assert layer.weight.var().item() == pytest.approx(1 / fan_in, rel=0.1)
    assert not layer.bias.any()


def test_ceil_pool_windows_start_at_the_first_cell():
    stem = CeilPoolStem(3, 1, norm="").eval()
    x = torch.randn(1, 3, 40, 40)
    conv1 = torch.relu(stem.conv1(x))[0, 0]
    pooled = stem(x)[0, 0]
    assert pooled[0, 0] == conv1[:3, :3].max()
    assert pooled[-1, -1] == conv1[18:, 18:].max()  # the last window has one pixel less


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(DEPTH=51), "DEPTH is 51"),
        (dict(DEPTH=18, DEFORM_ON_PER_STAGE=[False] * 3 + [True]), "no bottlenecks"),
        (dict(DEPTH=18, RES2_OUT_CHANNELS=256), "RES2_OUT_CHANNELS 64"),
        (dict(RES4_DILATION=2), "RES4_DILATION is 2"),
        (dict(RES5_DILATION=4), "RES5_DILATION is 4"),
        (dict(DEFORM_MASK_SCALE=0.5), "DEFORM_MASK_SCALE is 0.5"),
        (dict(DEFORM_OFFSET_INIT="normal"), "DEFORM_OFFSET_INIT is normal"),
        (dict(DEFORM_LAST_BLOCKS=[0, 0, 0, 1]), "DEFORM_LAST_BLOCKS is .*res5 has 3 blocks"),
        (
            dict(DEFORM_ON_PER_STAGE=[False] * 3 + [True], DEFORM_LAST_BLOCKS=[0, 0, 0, 4]),
            "DEFORM_LAST_BLOCKS is",
        ),
        (dict(DEFORM_ON_PER_STAGE=[True]), "DEFORM_ON_PER_STAGE is .*4 values"),
        (
            dict(DEFORM_ON_PER_STAGE=[True] * 4, DEFORM_LAST_BLOCKS=[-1, 0, 0, 0]),
            "DEFORM_LAST_BLOCKS is",
        ),
    ],
)
def test_impossible_options_are_named(options, message):
    cfg = make_cfg()
    cfg.MODEL.RESNETS.update(options)
    with pytest.raises(ValueError, match=message):
        build_deform_resnet_backbone(cfg, RGB)


@pytest.mark.parametrize(
    "builder",
    [
        "build_deform_resnet_backbone",
        "build_deform_resnet_fpn_backbone",
        "build_deform_retinanet_resnet_fpn_backbone",
        "build_mxnet_resnet_fpn_backbone",
        "build_tensorpack_resnet_fpn_backbone",
    ],
)
def test_builders_declare_all_keys_of_the_resnet(builder):
    cfg, plain = get_cfg(), get_cfg()
    add_deform_resnet_config(cfg)
    ours = {f"MODEL.RESNETS.{key}" for key in cfg.MODEL.RESNETS.keys() - plain.MODEL.RESNETS.keys()}
    assert BACKBONE_REGISTRY.get(builder).config_keys == ours
