"""tensorpack's GroupNorm arrangement, against the layers written out."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from torch.nn import functional as F
from torch.testing import assert_close

from dcn_projects import add_dcn_config

ROOT = "configs/Mask-RCNN/"
ARRANGED = [
    f"backbone.fpn_{kind}{level}" for kind in ("lateral", "output") for level in range(2, 6)
]
ARRANGED += [f"roi_heads.box_head.conv{k}" for k in range(1, 5)]
ARRANGED += [f"roi_heads.mask_head.mask_fcn{k}" for k in range(1, 5)]


def config(name, *opts):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(ROOT + name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
    return cfg


def state_names(cfg):
    """Of parameters and buffers, but not those of pixels and anchors."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        names = build_model(cfg).state_dict()
    return {n for n in names if "pixel" not in n and "cell_anchors" not in n}


def test_sixteen_biases():
    """With them it has the 239 arrays of tensorpack's R50-FPN Mask R-CNN with GN."""
    plain = state_names(config("mask_rcnn_R_50_FPN_2x_gn.yaml"))
    arranged = state_names(config("mask_rcnn_R_50_FPN_2x_gn_tensorpack.yaml"))
    assert len(plain) == 223 and len(arranged) == 239
    assert arranged - plain == {f"{name}.bias" for name in ARRANGED} and plain < arranged


COUNTS = {  # arrays in tensorpack's files of the same model
    "faster_rcnn_R_50_FPN_2x": 295,
    "mask_rcnn_R_50_C4_2x": 279,
    "mask_rcnn_R_101_C4_2x": 534,
    "mask_rcnn_R_50_FPN_2x": 307,
    "mask_rcnn_R_101_FPN_2x": 562,
}


@pytest.mark.parametrize("leaf", COUNTS)
def test_as_many_arrays_as_in_tensorpack(leaf):
    assert len(state_names(config(leaf + ".yaml"))) == COUNTS[leaf]


def randomize(module):
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return module.eval()


def conv_relu_norm(x, conv):
    """What tensorpack does, of the parameters of a layer."""
    x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
    groups = x.reshape(x.shape[0], 32, -1)
    mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    x = ((groups - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    return x * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None]


@pytest.mark.parametrize("box", [True, False], ids=["box", "mask"])
def test_heads(box):
    kind = "BOX" if box else "MASK"
    cfg = config("mask_rcnn_R_50_FPN_2x_gn_tensorpack.yaml")
    cfg.MODEL[f"ROI_{kind}_HEAD"].CONV_DIM = 64
    shape = ShapeSpec(channels=64, width=7, height=7)
    build = build_box_head if box else build_mask_head
    head = randomize(build(cfg, shape))
    x = torch.randn(2, 64, 7, 7)
    expected = x
    for conv in head.conv_norm_relus:
        expected = conv_relu_norm(expected, conv)
    if box:
        found = head(x)
        expected = F.relu(F.linear(expected.flatten(1), head.fc1.weight, head.fc1.bias))
    else:
        found = head.layers(x)
        up = F.relu(F.conv_transpose2d(expected, head.deconv.weight, head.deconv.bias, stride=2))
        expected = F.conv2d(up, head.predictor.weight, head.predictor.bias)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)

    cfg.MODEL[f"ROI_{kind}_HEAD"].NAME = "FastRCNNConvFCHead" if box else "MaskRCNNConvUpsampleHead"
    other = build(cfg, shape).eval()
    assert other.load_state_dict(head.state_dict(), strict=False).unexpected_keys  # the biases
    other = other(x) if box else other.layers(x)
    assert (other - found).abs().mean() > 0.1 * found.abs().mean()


@pytest.mark.parametrize(
    "key", ["MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM"]
)
def test_only_with_group_norm(key):
    with pytest.raises(ValueError, match=key):
        state_names(config("mask_rcnn_R_50_FPN_2x_gn_tensorpack.yaml", key, ""))
