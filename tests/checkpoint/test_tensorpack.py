"""
tensorpack's files: which names they have, what becomes of each array, and narrow networks that,
converted, compute what the originals compute.
"""

import zipfile

import numpy as np
import pytest
from detectron2.modeling import build_model

from dcn_projects.checkpoint import convert_weights, load_trained
from dcn_projects.checkpoint.tensorpack import convert_tensorpack, read_npz
from tests.checkpoint.narrow_models import check_outputs, make_cfg, narrow_opts, shapes_of, zeros
from tests.checkpoint.tensorpack_networks import Tensorpack

BOX, MASK = "COCO-Detection/faster_rcnn_R_50_", "COCO-InstanceSegmentation/mask_rcnn_R_50_"
GN_BOX = dict(box_head="4conv1fc", box_norm="gn")
GN_ALL = dict(norm="gn", fpn_norm="gn", mask_norm="gn", **GN_BOX)
FOUR_CONVS = "MODEL.ROI_BOX_HEAD.NUM_CONV 4 MODEL.ROI_BOX_HEAD.NUM_FC 1".split()
GN_BOX_OPTS = [
    *FOUR_CONVS, "MODEL.ROI_BOX_HEAD.NORM", "GN", "MODEL.ROI_BOX_HEAD.NAME", "TensorpackBoxHead"
]  # fmt: skip
GN_ALL_OPTS = (
    """
    MODEL.RESNETS.NORM GN MODEL.FPN.NORM GN MODEL.ROI_MASK_HEAD.NORM GN
    MODEL.BACKBONE.NAME build_tensorpack_resnet_fpn_backbone
    MODEL.ROI_MASK_HEAD.NAME TensorpackMaskHead
""".split()
    + GN_BOX_OPTS
)
C4 = dict(fpn=False, anchors=15)
# name: (number of arrays of R50, arguments of the original, detectron2's config, what differs)
MODELS = {
    "FPN Mask": (307, dict(fpn=True, mask=True), MASK + "FPN_1x", []),
    "FPN Faster": (295, dict(fpn=True, mask=False), BOX + "FPN_1x", []),
    "C4 Mask": (279, dict(mask=True, **C4), MASK + "C4_1x", []),
    "C4 Faster": (275, dict(mask=False, **C4), BOX + "C4_1x", []),
    "FPN Mask Cascade": (
        323, dict(fpn=True, mask=True, cascade=True), "Misc/cascade_mask_rcnn_R_50_FPN_1x", []
    ),
    "FPN Mask 4conv1fc": (
        313, dict(fpn=True, mask=True, box_head="4conv1fc"), MASK + "FPN_1x", FOUR_CONVS
    ),
    "FPN Mask GN box head": (
        321, dict(fpn=True, mask=True, **GN_BOX), MASK + "FPN_1x", GN_BOX_OPTS
    ),
    "FPN Mask GN": (239, dict(fpn=True, mask=True, **GN_ALL), MASK + "FPN_1x", GN_ALL_OPTS),
    "FPN Mask GN Cascade": (
        283, dict(fpn=True, mask=True, cascade=True, **GN_ALL),
        "Misc/cascade_mask_rcnn_R_50_FPN_1x", GN_ALL_OPTS,
    ),
    "FPN Mask SyncBN": (
        307, dict(fpn=True, mask=True), MASK + "FPN_1x", ["MODEL.RESNETS.NORM", "SyncBN"]
    ),
}  # fmt: skip
STD = [*("MODEL.PIXEL_STD", [57.375, 57.12, 58.395], "MODEL.RESNETS.STRIDE_IN_1X1", False)]
R101 = {"FPN Mask": 562, "C4 Mask": 534}


@pytest.mark.parametrize(
    "model,depth,count", [(m, 50, MODELS[m][0]) for m in MODELS] + [(m, 101, R101[m]) for m in R101]
)
def test_configs_take_the_arrays_of_the_originals(model, depth, count):
    """With nothing unknown (but what is put in), missing or misshapen."""
    _, arguments, config, opts = MODELS[model]
    units = (3, 4, 6, 3) if depth == 50 else (3, 4, 23, 3)
    arrays = zeros(Tensorpack(units=units, **arguments).parameters())
    assert len(arrays) == count
    shapes = shapes_of(make_cfg(config, *STD, "MODEL.RESNETS.DEPTH", depth, *opts))
    anchors = range(arguments.get("anchors", 3))
    with pytest.raises(ValueError) as error:
        convert_tensorpack(arrays | {"unknown/W": np.zeros((1, 1))}, shapes, True, anchors)
    assert str(error.value).split("\n") == [
        "a tensorpack detector that does not fit the model",
        "the model has no parameter for",
        "    unknown/W",
    ]


def random_arrays(shapes, seed=0):
    """Of a size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if name.endswith(("gamma", "variance/EMA")):
            array = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("/W"):
            array = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        else:
            array = rng.uniform(-0.5, 0.5, shape)
        arrays[name] = array.astype(np.float32)
    return arrays


def narrow(model, *opts):
    """The original and the config of a network of the same kind, with few blocks and channels."""
    _, arguments, config, model_opts = MODELS[model]
    arguments = dict(arguments, classes=4, fc=24, rpn=16)
    gn = arguments.get("norm") == "gn"
    channels = dict(stem=32, width=32) if gn else dict(stem=4, width=4)
    channels["dim"] = 32 if "GN" in model else 8
    original = Tensorpack(units=(1, 1, 1, 1 if arguments["fpn"] else 3), **arguments, **channels)
    rpn = original.dim if original.fpn else original.rpn
    return original, make_cfg(config, *STD, *narrow_opts(original, rpn), *model_opts, *opts)


def convert(cfg, arrays, tmp_path, **options):
    """A model of the config, with the arrays of a file."""
    np.savez(tmp_path / "net.npz", **{f"{name}:0": array for name, array in arrays.items()})
    model = build_model(cfg).eval()
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    convert_weights(tmp_path / "net.npz", tmp_path / "net.pth", cfg, shapes, **options)
    load_trained(model, str(tmp_path / "net.pth"))
    return model


@pytest.mark.parametrize("model", MODELS)
def test_converted_networks_compute_the_same(model, tmp_path):
    original, cfg = narrow(model)
    arrays = random_arrays(original.parameters())
    check_outputs(original, convert(cfg, arrays, tmp_path), arrays)


def test_a_model_that_reads_rgb(tmp_path):
    rgb = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]]
    original, cfg = narrow("FPN Faster", *rgb, "MODEL.PIXEL_STD", [58.395, 57.12, 57.375])
    arrays = random_arrays(original.parameters())
    check_outputs(original, convert(cfg, arrays, tmp_path), arrays, "RGB")


LEGACY = ["MODEL.ANCHOR_GENERATOR.NAME", "PyFasterRCNNAnchorGenerator"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("opts", [[], LEGACY], ids=["default", "PyFasterRCNNAnchorGenerator"])
def test_outputs_belong_to_the_anchors_of_the_original(opts, legacy, tmp_path):
    """Sizes first, or, before May 2019, ratios first."""
    original, cfg = narrow("C4 Faster", *opts)
    arrays = random_arrays(original.parameters())
    model = convert(cfg, arrays, tmp_path, legacy_anchors=legacy)
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES[0], (0.5, 1, 2)
    if legacy:
        theirs = [(size, ratio) for ratio in ratios for size in sizes]
    else:
        theirs = [(size, ratio) for size in sizes for ratio in ratios]
    theirs = np.array([(size / ratio**0.5, size * ratio**0.5) for size, ratio in theirs])
    (ours,) = model.proposal_generator.anchor_generator.cell_anchors
    ours = (ours[:, 2:] - ours[:, :2]).numpy()
    same = np.abs(np.log(theirs) - np.log(ours)[:, None]).max(axis=2) < 0.1  # [ours, theirs]
    assert (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()
    check_outputs(original, model, arrays, anchor_order=same.argmax(axis=1))


CLASSIFIER = "FPN Faster", "C4 Mask", "FPN Mask GN"


@pytest.mark.parametrize("last", ["linear", "fc1000"])
@pytest.mark.parametrize("model", CLASSIFIER)
def test_imagenet_classifier(model, last, tmp_path):
    """All but the ResNet, and its offsets, is left as the model starts it."""
    deformable = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, False]]
    original, cfg = narrow(model, *deformable)
    shapes = {n: tuple(p.shape) for n, p in build_model(cfg).state_dict().items()}
    arrays = random_arrays(original.resnet())
    arrays |= {f"{last}/W": np.ones((9, 1000)), f"{last}/b": np.ones(1000)}
    network, params = convert_tensorpack(arrays, shapes, True, range(15))
    assert network == "ImageNet classifier"
    others = shapes.keys() - params.keys()
    heads = ("rpn_head.", "box_head.", "box_predictor.", "mask_head.", ".fpn_", "conv_offset.")
    assert others and all(any(h in n for h in heads) or "num_batch" in n for n in others)
    assert not any(h in n for h in heads for n in params)
    arrays[f"{last}/b"] = np.ones(21)
    del arrays["group3/block0/conv2/W"]
    with pytest.raises(ValueError) as error:
        convert_tensorpack(arrays, shapes, True, range(15))
    assert f"{last}/b (21,) is not that of a tensorpack ImageNet classifier" in str(error.value)
    assert "the file has no array for\n    " in str(error.value)
    assert str(error.value).endswith("res5.0.conv2.weight")


def test_what_training_leaves_is_dropped():
    original, cfg = narrow("FPN Faster")
    arrays, shapes = random_arrays(original.parameters()), shapes_of(cfg)
    _, params = convert_tensorpack(arrays, shapes, True, range(3))
    of_training = """
        learning_rate global_step conv0/W/Momentum group0/block0/conv1/bn/gamma/Momentum
        AccumGrad/rpn/conv0/W EMA/QueueInput/queue_size rpn_losses/level2/label_loss/EMA
    """
    left = {name: np.float32(1) for name in of_training.split()}
    _, with_them = convert_tensorpack(arrays | left, shapes, True, range(3))
    assert params.keys() == with_them.keys()
    for name in ("conv0/W/Adam", "group0/block0/conv1/bn/median/EMA", "beta1_power"):
        with pytest.raises(ValueError, match=f"has no parameter for\n    {name}$"):
            convert_tensorpack(arrays | {name: np.float32(1)}, shapes, True, range(3))


def test_all_that_is_wrong_is_listed():
    original, cfg = narrow("FPN Mask GN box head")
    arrays = random_arrays(original.parameters())
    arrays["fastrcnn/gn0/W"] = arrays["fastrcnn/gn0/gamma"]
    arrays["conv0/gn/gamma"] = arrays.pop("conv0/bn/gamma")
    arrays["group1/block1/conv1/W"] = arrays["group1/block0/conv1/W"]
    arrays["fastrcnn/outputs/box/b"] = arrays["fastrcnn/outputs/box/b"][4:]
    arrays["rpn/conv0/W"] = arrays["rpn/conv0/W"].astype(np.int32)
    arrays["maskrcnn/deconv/b"] = np.float32(1)
    arrays["rpn/class/b"][1] = np.inf
    del arrays["fpn/posthoc_3x3_p3/W"], arrays["group2/block0/conv3/bn/mean/EMA"]
    with pytest.raises(ValueError) as error:
        convert_tensorpack(arrays, shapes_of(cfg), True, range(3))
    assert str(error.value).split("\n") == [
        "a tensorpack detector that does not fit the model",
        "res3 has 2 blocks in the file and 1 in the config: MODEL.RESNETS.DEPTH",
        "the model has no parameter for",
        "    fastrcnn/gn0/W",
        "    group1/block1/conv1/W (as backbone.bottom_up.res3.1.conv1.weight)",
        "these arrays are not what they should be",
        "    rpn/conv0/W is int32 (32, 32, 3, 3), expected float (32, 32, 3, 3)",
        "    rpn/class/b has values that are not finite",
        "    fastrcnn/outputs/box/b is float32 (12,), expected float (16,)",
        "    maskrcnn/deconv/b is float32 (), expected float (32,)",
        "the file has no array for",
        "    backbone.fpn_output3.weight",
        "    backbone.bottom_up.res4.0.conv3.norm.running_mean",
    ]


def test_gn_detectors_do_not_fit_the_order_of_detectron2():
    """Its heads have no bias before GN, and ReLU after it: another function of the same weights."""
    original, _ = narrow("FPN Mask GN")
    _, cfg = narrow("FPN Mask GN", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")
    with pytest.raises(ValueError) as error:
        convert_tensorpack(random_arrays(original.parameters()), shapes_of(cfg), True, range(3))
    assert str(error.value).split("\n")[1:] == [
        "the model has no parameter for",
        *(f"    fastrcnn/conv{k}/b (as roi_heads.box_head.conv{k + 1}.bias)" for k in range(4)),
        "tensorpack has a bias, then ReLU, then GroupNorm: take MODEL.BACKBONE.NAME "
        "build_tensorpack_resnet_fpn_backbone, MODEL.ROI_BOX_HEAD.NAME TensorpackBoxHead and "
        "MODEL.ROI_MASK_HEAD.NAME TensorpackMaskHead where their NORM is GN",
    ]
    unknown = {f"unknown{i}/W": np.ones((1, 1)) for i in range(9)}  # named instead of the biases
    arrays = unknown | random_arrays(original.parameters())
    with pytest.raises(ValueError, match="and 8 more\ntensorpack has a bias, then ReLU, then Gro"):
        convert_tensorpack(arrays, shapes_of(cfg), True, range(3))


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    return write


def test_npz_is_read_without_pickle(npz):
    arrays = {"a/W:0": np.arange(6.0).reshape(2, 3), "b": np.float16([1, 2]), "c": np.float32(3)}
    found = read_npz(npz(**arrays))
    assert found["a/W"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["c"] == 3
    assert list(found) == ["a/W", "b", "c"] and found["b"].dtype == np.float16
    path = npz(a=np.ones(3), evil=np.array([print, "x"], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz: evil: .*not an array of numbers"):
        read_npz(path)
    with pytest.raises(ValueError, match=r"a\.npz: a:0: .*there twice"):
        read_npz(npz(**{"a": np.ones(1), "a:0": np.ones(1)}))


def test_damaged_npz(npz, tmp_path):
    path = npz(a=np.arange(1000.0), b=np.ones(3))
    content = path.read_bytes()
    for size in (10, 100, 5000, len(content) - 5):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.npz is cut off") as error:
            read_npz(path)
        assert "\n" not in str(error.value)
    for at in (60, 3000):  # in the name of the file's own header, and in the data
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"a\.npz: a: cannot be read"):
            read_npz(path)
    header = content.replace(b"(1000,)", b"(9999,)")
    path.write_bytes(header)
    with pytest.raises(ValueError, match=r"a\.npz: a: cannot be read"):
        read_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"not an array")
        archive.writestr("b.txt", b"not an array")
    with pytest.raises(ValueError, match=r"a\.npz: a: cannot be read"):
        read_npz(path)
