"""What becomes of each array, on networks whose rows hold their own numbers."""

import numpy as np
import pytest

from dcn_projects.checkpoint.mxnet import ModelOptions, convert_mxnet, rename_backbone

NAMES = {
    "arg:conv1_weight": "stem.conv1.weight",
    "arg:bn_conv1_gamma": "stem.conv1.norm.weight",
    "aux:bn_conv1_moving_var": "stem.conv1.norm.running_var",
    "arg:res2a_branch1_weight": "res2.0.shortcut.weight",
    "arg:bn3b2_branch2b_beta": "res3.2.conv2.norm.bias",
    "arg:res4b22_branch2c_weight": "res4.22.conv3.weight",
    "arg:res5c_branch2b_offset_bias": "res5.2.conv2.conv_offset.bias",
    "arg:res3b3_branch2b_offset_weight": "res3.3.conv2.conv_offset.weight",
    "aux:bn5b_branch2a_moving_mean": "res5.1.conv1.norm.running_mean",
    # None of a ResNet's.
    "arg:rfcn_cls_weight": "",
    "arg:res6a_branch1_weight": "",
    "arg:res4b0_branch2a_weight": "",
    "arg:res4b01_branch2a_weight": "",
    "arg:res2a_branch1_gamma": "",
    "arg:bn2a_branch1_weight": "",
    "arg:bn2a_branch1_moving_mean": "",
    "aux:bn2a_branch1_gamma": "",
    "aux:conv1_weight": "",
    "arg:bn_conv1_gamma_test": "",
    "conv1_weight": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_rename_backbone(name):
    assert rename_backbone(name) == NAMES[name]


OPTIONS = ModelOptions(
    bgr=True, bins=9, box_weights=(10.0, 10.0, 5.0, 5.0), rpn_box_weights=(1.0, 1.0, 1.0, 1.0)
)
HEAD = "proposal_generator.rpn_head."
POOLERS = "roi_heads.box_pooler.level_poolers."
PREDICTOR = "roi_heads.box_predictor."
RPN = [
    ("rpn_cls_score", (6, 2), HEAD + "objectness_logits", [3, 3, 3]),
    ("rpn_bbox_pred", (12, 2), HEAD + "anchor_deltas", range(12)),
]
BOX_HEAD = [
    ("fc_new_1", (5, 7), "roi_heads.box_head.fc1", range(5)),
    ("fc_new_2", (5, 5), "roi_heads.box_head.fc2", range(5)),
    ("cls_score", (3, 5), PREDICTOR + "cls_score", [1, 2, 0]),
    ("bbox_pred", (12, 5), PREDICTOR + "bbox_pred", [40, 50, 30, 35, 80, 90, 50, 55]),
]
# Two classes and the background, 3 x 3 bins: layer of the original, its shape, our layer, and the
# rows of the original that it holds, in the box layer times 10 (x, y) or 5 (width, height).
LAYERS = {
    "R-FCN": [
        ("rpn_conv_3x3", (2, 4), HEAD + "conv", range(2)),
        *RPN,
        ("conv_new_1", (5, 4), "roi_heads.score_maps.conv_new", range(5)),
        ("rfcn_cls", (27, 5), "roi_heads.score_maps.rfcn_cls", [*range(9, 27), *range(9)]),
        (
            *("rfcn_bbox", (72, 5), "roi_heads.score_maps.rfcn_bbox"),
            [10 * r for r in range(36, 54)] + [5 * r for r in range(54, 72)],
        ),
        (
            *("rfcn_cls_offset_t", (54, 5), "roi_heads.score_maps.rfcn_cls_offset"),
            [*range(18, 54), *range(18)],
        ),
        ("rfcn_bbox_offset_t", (18, 5), "roi_heads.score_maps.rfcn_bbox_offset", range(18)),
    ],
    "Faster R-CNN": [
        ("rpn_conv_3x3", (2, 4), HEAD + "conv", range(2)),
        *RPN,
        ("conv_new_1", (5, 4), "roi_heads.conv_new", range(5)),
        ("offset", (18, 45), POOLERS + "0.offset_fc", range(18)),
        *BOX_HEAD,
    ],
    "FPN": [
        *((f"fpn_p{i}_1x1", (4, i), f"backbone.fpn_lateral{i}", range(4)) for i in range(2, 6)),
        *((f"fpn_p{i}", (i, 4), f"backbone.fpn_output{i}", range(i)) for i in range(2, 6)),
        ("fpn_p6", (4, 8), "backbone.top_block.p6", range(4)),
        ("rpn_conv", (2, 4), HEAD + "conv", range(2)),
        *RPN,
        *((f"offset_p{i}", (18, i), f"{POOLERS}{i - 2}.offset_fc", range(18)) for i in range(2, 6)),
        *BOX_HEAD,
    ],
    "DeepLab": [
        ("fc6", (5, 4), "sem_seg_head.fc6", range(5)),
        ("score", (2, 5), "sem_seg_head.score", range(2)),
    ],
}


def numbered(shape):
    """Every element is the number of its row."""
    rows = np.arange(shape[0], dtype=np.float32)
    return np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape).copy()


def make_source(network):
    arrays = {"arg:conv1_weight": np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)}
    arrays["aux:bn_conv1_moving_var"] = np.full(2, 0.5, np.float32)
    arrays["arg:res5a_branch2b_offset_bias"] = numbered((18,))
    for layer, shape, _, _ in LAYERS[network]:
        arrays[f"arg:{layer}_weight"] = numbered(shape)
        arrays[f"arg:{layer}_bias"] = numbered(shape[:1])
    if network == "DeepLab":
        tent = np.minimum(np.arange(0.5, 32), np.arange(31.5, 0, -1)) / 16
        arrays["arg:upsampling_weight"] = np.tile(np.outer(tent, tent), (2, 1, 1, 1))
    return arrays


def make_shapes(network):
    backbone = "backbone.bottom_up." if network == "FPN" else "backbone."
    shapes = {
        backbone + "stem.conv1.weight": (2, 3, 1, 1),
        backbone + "stem.conv1.norm.running_var": (2,),
        backbone + "stem.conv1.norm.num_batches_tracked": (),
        backbone + "res5.0.conv2.conv_offset.bias": (18,),
    }
    for _, shape, layer, rows in LAYERS[network]:
        shapes[f"{layer}.weight"] = (len(rows), *shape[1:])
        shapes[f"{layer}.bias"] = (len(rows),)
    return shapes


@pytest.mark.parametrize("network", LAYERS)
def test_every_array_of_every_network(network):
    shapes = make_shapes(network)
    found, params = convert_mxnet(make_source(network), shapes, OPTIONS)
    assert found == network
    converted = {name: p.shape for name, p in params.items()}
    assert converted == {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    assert all(p.dtype == np.float32 for p in params.values())
    for _, _, layer, rows in LAYERS[network]:
        for kind in ("weight", "bias"):
            param = params[f"{layer}.{kind}"]
            np.testing.assert_array_equal(param, np.broadcast_to(rows_of(rows, param), param.shape))
    (stem,) = (p for name, p in params.items() if name.endswith("stem.conv1.weight"))
    assert stem.flatten().tolist() == [2, 1, 0, 5, 4, 3]  # RGB to BGR
    (offset,) = (p for name, p in params.items() if name.endswith("conv2.conv_offset.bias"))
    assert offset.tolist() == [*range(18)]


def rows_of(rows, param):
    return np.reshape(list(rows), (-1, *[1] * (param.ndim - 1)))


def test_rgb_is_kept_for_an_rgb_model():
    options = OPTIONS._replace(bgr=False)
    _, params = convert_mxnet(make_source("R-FCN"), make_shapes("R-FCN"), options)
    assert params["backbone.stem.conv1.weight"].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_weights_of_box_deltas():
    """The model divides its outputs by them, so the layers are multiplied."""
    options = OPTIONS._replace(box_weights=(1, 1, 1, 1), rpn_box_weights=(2, 2, 3, 3))
    _, params = convert_mxnet(make_source("FPN"), make_shapes("FPN"), options)
    assert params[PREDICTOR + "bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    expected = [0, 2, 6, 9, 8, 10, 18, 21, 16, 18, 30, 33]
    assert params[HEAD + "anchor_deltas.bias"].tolist() == expected


BOX_LAYER = {"R-FCN": ("rfcn_bbox", 9), "Faster R-CNN": ("bbox_pred", 1), "FPN": ("bbox_pred", 1)}


def with_tests(network):
    """As saved by the original: the trained box layer, and the one times the deviations."""
    arrays = make_source(network)
    layer, block = BOX_LAYER[network]
    for name in (f"arg:{layer}_weight", f"arg:{layer}_bias"):
        rows = len(arrays[name])
        stds = np.tile(np.repeat([0.1, 0.1, 0.2, 0.2], block), rows // block // 4)
        arrays[name + "_test"] = (arrays[name] * rows_of(stds, arrays[name])).astype(np.float32)
    return arrays


@pytest.mark.parametrize("network", BOX_LAYER)
@pytest.mark.parametrize("saved", ["twice", "only *_test", "only trained", "float16"])
def test_saved_box_layers(network, saved):
    """All forms give the trained layer back, for which the weights (10, 10, 5, 5) are made."""
    arrays = with_tests(network)
    trained = {k: v for k, v in arrays.items() if k + "_test" in arrays}
    options = OPTIONS
    if saved == "only *_test":
        arrays = {k: v for k, v in arrays.items() if k not in trained}
    elif saved == "only trained":
        arrays = make_source(network)
        options = OPTIONS._replace(boxes_normalized=True)
    elif saved == "float16":
        arrays = {k: v.astype(np.float16) for k, v in arrays.items()}
    _, params = convert_mxnet(arrays, make_shapes(network), options)
    target = dict((layer, target) for layer, _, target, _ in LAYERS[network])[BOX_LAYER[network][0]]
    skipped = 4 * BOX_LAYER[network][1]
    for name, array in trained.items():
        param = params[f"{target}.{name.rsplit('_', 1)[1]}"]
        if saved == "only *_test":
            np.testing.assert_allclose(param, array[skipped:], rtol=1e-6)
        else:
            np.testing.assert_array_equal(param, array[skipped:])


@pytest.mark.parametrize("change", ["deviation", "shape", "missing", "nan"])
def test_test_arrays_that_contradict_the_others(change):
    arrays = with_tests("FPN")
    if change == "deviation":
        arrays["arg:bbox_pred_bias_test"][5] *= 2
    elif change == "shape":
        arrays["arg:bbox_pred_bias_test"] = arrays["arg:bbox_pred_bias_test"][4:]
    elif change == "missing":
        del arrays["arg:bbox_pred_bias_test"]
    else:
        arrays["arg:bbox_pred_bias_test"][5] = np.nan
    with pytest.raises(ValueError, match="arg:bbox_pred_bias_test is not arg:bbox_pred_bias times"):
        convert_mxnet(arrays, make_shapes("FPN"), OPTIONS)


def test_all_that_is_wrong_is_listed():
    arrays = make_source("R-FCN")
    arrays["arg:fc_new_1_weight"] = np.zeros(1, np.float32)
    arrays["arg:rpn_conv_3x3_weight_test"] = np.zeros(1, np.float32)
    arrays["arg:res5b_branch2b_offset_bias"] = np.zeros(18, np.float32)
    arrays["arg:res4b_branch1_weight"] = np.zeros(1, np.float32)
    arrays["arg:rpn_cls_score_bias"] = np.zeros(5, np.float32)
    arrays["arg:rfcn_bbox_bias"] = np.float32(1)
    arrays["arg:conv1_weight"][0, 0, 0, 0] = np.nan
    arrays["arg:rfcn_cls_weight"] = arrays["arg:rfcn_cls_weight"].astype(np.int32)
    del arrays["arg:conv_new_1_bias"], arrays["aux:bn_conv1_moving_var"]
    with pytest.raises(ValueError) as error:
        convert_mxnet(arrays, make_shapes("R-FCN"), OPTIONS)
    assert str(error.value).split("\n") == [
        "an MXNet R-FCN that does not fit the model",
        "res5 has 2 blocks in the file and 1 in the config: MODEL.RESNETS.DEPTH",
        "the model has no parameter for",
        "    arg:fc_new_1_weight",
        "    arg:rpn_conv_3x3_weight_test",
        "    arg:res5b_branch2b_offset_bias (as backbone.res5.1.conv2.conv_offset.bias)",
        "    arg:res4b_branch1_weight (as backbone.res4.1.shortcut.weight)",
        "these arrays are not what they should be",
        "    arg:conv1_weight has values that are not finite",
        "    arg:rpn_cls_score_bias is float32 (5,), expected float (6,)",
        "    arg:rfcn_cls_weight is int32 (27, 5), expected float (27, 5)",
        "    arg:rfcn_bbox_bias is float32 (), expected float (72,)",
        "the file has no array for",
        "    backbone.stem.conv1.norm.running_var",
        "    roi_heads.score_maps.conv_new.bias",
    ]


def test_two_arrays_for_one_parameter():
    arrays = {f"arg:res2{block}_branch1_weight": np.ones(1, np.float32) for block in ("b", "b1")}
    with pytest.raises(ValueError, match="res2b1_branch1_weight is backbone.res2.1.shortcut.weigh"):
        convert_mxnet(arrays, {"backbone.res2.1.shortcut.weight": (1,)}, OPTIONS)


def test_upsampling_kernel_is_checked():
    arrays = make_source("DeepLab")
    arrays["arg:upsampling_weight"][0, 0, 3, 3] = 0
    with pytest.raises(
        ValueError, match="upsampling_weight .2, 1, 32, 32. is not that of an MXNet DeepL"
    ):
        convert_mxnet(arrays, make_shapes("DeepLab"), OPTIONS)


def test_half_precision_is_widened_before_it_is_subtracted():
    arrays = make_source("FPN")
    bias = np.array([1000, 1000, 1000, 0.3, 0.3, 0.3], np.float16)
    _, params = convert_mxnet(
        arrays | {"arg:rpn_cls_score_bias": bias}, make_shapes("FPN"), OPTIONS
    )
    expected = np.float32(np.float16(0.3)) - 1000
    assert (params[HEAD + "objectness_logits.bias"] == expected).all()


@pytest.mark.parametrize("bottom_up", ["", "bottom_up."])
@pytest.mark.parametrize("fc", ["fc1000", "fc1"])
def test_imagenet_classifier(bottom_up, fc):
    """All but the ResNet, and its offsets, is left as the model starts it."""
    arrays = {
        "arg:conv1_weight": np.ones((2, 3, 1, 1), np.float32),
        "arg:res5a_branch2b_weight": np.ones(4, np.float32),
        f"arg:{fc}_weight": np.ones((1000, 2), np.float32),
        f"arg:{fc}_bias": np.ones(1000, np.float32),
    }
    stem, conv = (f"backbone.{bottom_up}{n}.weight" for n in ("stem.conv1", "res5.0.conv2"))
    shapes = {stem: (2, 3, 1, 1), conv: (4,)}
    others = {
        f"backbone.{bottom_up}res5.0.conv2.conv_offset.weight": (3,),
        "backbone.fpn_lateral2.weight": (3,),
        "roi_heads.score_maps.rfcn_cls.weight": (9,),
    }
    network, params = convert_mxnet(arrays, shapes | others, OPTIONS)
    assert network == "ImageNet classifier" and params.keys() == {stem, conv}
    missing = {f"backbone.{bottom_up}res2.0.conv1.weight": (1,)}
    with pytest.raises(ValueError, match=r"has no array for\n.*res2.0.conv1.weight$"):
        convert_mxnet(arrays, shapes | others | missing, OPTIONS)
    with pytest.raises(
        ValueError, match=r"_bias .21,. is not that of an MXNet ImageNet classifier"
    ):
        convert_mxnet(arrays | {f"arg:{fc}_bias": np.ones(21)}, shapes | others, OPTIONS)
