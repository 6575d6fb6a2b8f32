import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.modeling import build_mxnet_resnet_fpn_backbone

RGB = ShapeSpec(channels=3)
STAGES = ["res2", "res3", "res4", "res5"]


def make_cfg(in_features=STAGES):
    cfg = get_cfg()
    add_dcn_config(cfg)
    resnet = dict(DEPTH=14, OUT_FEATURES=STAGES, NORM="BN", STEM_CEIL_POOL=True)
    cfg.MODEL.RESNETS.update(
        dict(**resnet, STEM_OUT_CHANNELS=8, RES2_OUT_CHANNELS=16, WIDTH_PER_GROUP=8)
    )
    cfg.MODEL.FPN.update(dict(IN_FEATURES=in_features, OUT_CHANNELS=12))
    return cfg


def test_maps_are_those_of_the_original():
    """Written out: laterals, sums with the repeated level above, outputs, P6 from res5."""
    torch.manual_seed(0)
    model = build_mxnet_resnet_fpn_backbone(make_cfg(), RGB).double().eval()
    for name, p in model.named_parameters():
        if "bottom_up" not in name and name.endswith("bias"):
            torch.nn.init.normal_(p)
    x = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    weights = dict(model.named_parameters())

    def conv(x, name, **kwargs):
        return F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"], **kwargs)

    with torch.no_grad():
        stages = model.bottom_up(x)
        expected = {"p6": conv(stages["res5"], "top_block.p6", stride=2, padding=1)}
        above = None
        for level in (5, 4, 3, 2):
            total = conv(stages[f"res{level}"], f"fpn_lateral{level}")
            if above is not None:
                rows, columns = total.shape[2:]
                above = above[:, :, torch.arange(rows) // 2][:, :, :, torch.arange(columns) // 2]
                total = total + above
            expected[f"p{level}"] = conv(total, f"fpn_output{level}", padding=1)
            above = total
        actual = model(x)
    assert list(actual) == ["p2", "p3", "p4", "p5", "p6"]
    for name in expected:
        assert_close(actual[name], expected[name])
    shapes = {name: (s.channels, s.stride) for name, s in model.output_shape().items()}
    assert shapes == {f"p{i}": (12, 2**i) for i in range(2, 7)}


def test_every_convolution_starts_alike():
    torch.manual_seed(0)
    cfg = make_cfg()
    cfg.MODEL.FPN.OUT_CHANNELS = 128
    model = build_mxnet_resnet_fpn_backbone(cfg, RGB)
    layers = {n: m for n, m in model.named_children() if n.startswith("fpn_")}
    assert len(layers) == 8
    for layer in (*layers.values(), model.top_block.p6):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert layer.bias is not None and not layer.bias.any()


@pytest.mark.parametrize("in_features", [["res2", "res3", "res4"], []])
def test_p6_needs_res5(in_features):
    with pytest.raises(ValueError, match="MODEL.FPN.IN_FEATURES"):
        build_mxnet_resnet_fpn_backbone(make_cfg(in_features), RGB)
