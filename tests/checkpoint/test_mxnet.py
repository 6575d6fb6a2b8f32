import numpy as np
import pytest

from dcn_projects.checkpoint.mxnet import rename_backbone, rename_rfcn

NAMES = {
    "conv1_weight": "backbone.stem.conv1.weight",
    "bn_conv1_gamma": "backbone.stem.conv1.norm.weight",
    "bn_conv1_moving_var": "backbone.stem.conv1.norm.running_var",
    "res2a_branch1_weight": "backbone.res2.0.shortcut.weight",
    "bn3b2_branch2b_beta": "backbone.res3.2.conv2.norm.bias",
    "res4b22_branch2c_weight": "backbone.res4.22.conv3.weight",
    "res5c_branch2b_offset_bias": "backbone.res5.2.conv2_offset.bias",
    "rfcn_cls_weight": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_rename_backbone(name):
    assert rename_backbone(name) == NAMES[name]


def make_head(deformable):
    """The parameters beside the backbone: every channel holds its own number."""
    channels = {
        "rpn_conv_3x3": 512, "rpn_cls_score": 24, "rpn_bbox_pred": 48, "conv_new_1": 1024,
        "rfcn_cls": 49 * 3, "rfcn_bbox": 49 * 8,
    }  # fmt: skip
    if deformable:
        channels |= {"rfcn_cls_offset_t": 98 * 3, "rfcn_bbox_offset_t": 98}
    arrays = {"arg:conv1_weight": np.arange(3.0).reshape(1, 3, 1, 1)}
    for name, count in channels.items():
        for kind in ("weight", "bias"):
            arrays[f"arg:{name}_{kind}"] = np.arange(float(count))
    return arrays


def test_blocks_are_reordered():
    params = rename_rfcn(make_head(deformable=True))
    assert params["backbone.stem.conv1.weight"].flatten().tolist() == [2, 1, 0]  # RGB to BGR
    assert (params["proposal_generator.rpn_head.objectness_logits.weight"] == 12).all()
    # Background last, the 49 channels of a class together.
    expected = [*range(49, 147), *range(49)]
    assert params["score_maps.rfcn_cls.bias"].tolist() == expected
    assert params["score_maps.rfcn_bbox.weight"].tolist() == [*range(196, 392)]
    expected = [*range(98, 294), *range(98)]
    assert params["score_maps.rfcn_cls_offset.weight"].tolist() == expected
    assert params["score_maps.rfcn_bbox_offset.bias"].tolist() == [*range(98)]


def test_rgb_is_kept_for_an_rgb_model():
    params = rename_rfcn(make_head(deformable=False), input_format="RGB")
    assert params["backbone.stem.conv1.weight"].flatten().tolist() == [0, 1, 2]


def test_unknown_arrays_are_refused():
    arrays = make_head(deformable=False) | {"arg:fc_new_1_weight": np.zeros(1)}
    with pytest.raises(ValueError, match="fc_new_1_weight"):
        rename_rfcn(arrays)
