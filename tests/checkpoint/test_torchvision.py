"""torchvision's models, with random weights: what they compute, the converted ones compute, too."""

import copy
import functools

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torchvision.models import ResNet, resnet50, resnet101
from torchvision.models.detection import (
    FasterRCNN,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from dcn_projects.checkpoint import convert_weights, load_to_start, load_trained
from dcn_projects.engine import read_config
from dcn_projects.modeling import build_model
from tests.checkpoint.narrow_models import shapes_of

FASTER, MASK = (f"Mask-RCNN/{kind}_rcnn_R_50_FPN_2x.yaml" for kind in ("faster", "mask"))
V2 = """
    MODEL.FPN.NORM BN MODEL.RPN.CONV_DIMS [-1,-1] MODEL.ROI_BOX_HEAD.NUM_CONV 4
    MODEL.ROI_BOX_HEAD.NUM_FC 1 MODEL.ROI_BOX_HEAD.NORM BN MODEL.ROI_MASK_HEAD.NORM BN
""".split()
SHALLOW = "MODEL.BACKBONE.NAME build_deform_resnet_fpn_backbone MODEL.RESNETS.DEPTH 14".split()
SETTINGS = {
    "MODEL.ANCHOR_GENERATOR.NAME": "TorchvisionAnchorGenerator",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
}
MASK_SETTINGS = {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign"}
IMAGE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)  # RGB


def shallow(norm):
    body = ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=norm)
    layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    return FasterRCNN(BackboneWithFPN(body, layers, [256, 512, 1024, 2048], 256), 91)


def randomize(model):
    """Numbers that make every array matter: variances, and scores that differ."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.weight.data.uniform_(0.6, 1.2)
        if getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1)
    model.eval()
    # On the image of this test all scores are between 0 and 1, and no two of them are alike.
    for name, spread in (("rpn.head.cls_logits", 2), ("roi_heads.box_predictor.cls_score", 3)):
        layer, outputs = model.get_submodule(name), []
        handle = layer.register_forward_hook(lambda *args, kept=outputs: kept.append(args[-1]))
        with torch.no_grad():
            model([torch.from_numpy(IMAGE).permute(2, 0, 1) / 255])
        handle.remove()
        rows = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in outputs])  # (R, classes)
        scale = spread / rows.std(dim=0)
        layer.weight.data *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias.data = (layer.bias.data - rows.mean(dim=0)) * scale
    return model


def build(name):
    """The model of torchvision, the config, and options of it."""
    none = dict(weights=None, weights_backbone=None)
    frozen = functools.partial(FrozenBatchNorm2d, eps=0.0)
    model, config, opts = {
        "mask": (maskrcnn_resnet50_fpn, MASK, []),
        "mask v2": (maskrcnn_resnet50_fpn_v2, MASK, V2),
        "faster, frozen": (lambda **_: shallow(frozen), FASTER, SHALLOW),
    }[name]
    theirs = model(**none)
    theirs.transform.min_size, theirs.transform.max_size = (96,), 128  # that of the image
    return randomize(theirs), config, opts


def make_cfg(config, opts):
    words = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", "90", *opts]
    return read_config(config, words)


def convert(state, cfg, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    return convert_weights(tmp_path / "a.pth", tmp_path / "b.pth", cfg, shapes_of(cfg))


def with_settings(cfg, settings):
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_list([word for setting in settings.items() for word in setting])
    return cfg


def assert_close(actual, expected, tolerance=1e-4):
    """Relative to the largest value; and it is not all the same."""
    assert actual.shape == expected.shape and expected.std() > 1e-3
    assert (actual - expected).abs().max() / expected.abs().max() < tolerance


def image_for(cfg):
    image = IMAGE[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else IMAGE
    return [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}]


@torch.no_grad()
def check_outputs(theirs, ours, cfg):
    """Of each part, on the same input; then of the whole."""
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1) / 255
    batch, _ = theirs.transform([pixels])
    images = ours.preprocess_image(image_for(cfg))
    flip = images.tensor.flip(1) if cfg.INPUT.FORMAT == "BGR" else images.tensor
    assert_close(flip, batch.tensors)

    expected, features = theirs.backbone(batch.tensors), ours.backbone(images.tensor)
    for name, value in zip(("p2", "p3", "p4", "p5", "p6"), expected.values()):
        assert_close(features[name], value)

    rpn = ours.proposal_generator
    maps = list(expected.values())
    for actual, value in zip(rpn.rpn_head(maps), theirs.rpn.head(maps)):
        for a, b in zip(actual, value):
            assert_close(a, b)
    anchors = torch.cat([boxes.tensor for boxes in rpn.anchor_generator(maps)])
    assert_close(anchors, theirs.rpn.anchor_generator(batch, maps)[0], 1e-6)

    boxes = torch.tensor([[3.0, 5, 60, 70], [10, 20, 127, 90], [0, 0, 17, 95], [50, 8, 58, 14]])
    levels = dict(zip(("0", "1", "2", "3", "pool"), maps))
    heads, size = ours.roi_heads, batch.image_sizes
    pooled = theirs.roi_heads.box_roi_pool(levels, [boxes], size)
    mine = heads.box_pooler(maps[:4], [Boxes(boxes)])
    assert_close(mine, pooled)
    pairs = zip(
        heads.box_predictor(heads.box_head(pooled)),
        theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled)),
    )
    (scores, wanted), (deltas, wanted_deltas) = pairs
    assert_close(scores, wanted.roll(-1, dims=1))  # the background is the last one
    assert_close(deltas, wanted_deltas[:, 4:])
    if heads.mask_on:
        pooled = theirs.roi_heads.mask_roi_pool(levels, [boxes], size)
        assert_close(heads.mask_pooler(maps[:4], [Boxes(boxes)]), pooled)
        masks = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
        assert_close(heads.mask_head.layers(pooled), masks[:, 1:])

    (found,) = theirs([pixels])
    (mine,) = ours.inference(image_for(cfg), do_postprocess=False)
    assert isinstance(mine, Instances) and len(found["boxes"]) > 5
    same = pairwise_iou(mine.pred_boxes, Boxes(found["boxes"])) > 0.99
    same &= mine.pred_classes[:, None] == found["labels"] - 1
    same &= (mine.scores[:, None] - found["scores"]).abs() < 1e-3
    # Of random numbers a few overlaps are those at which NMS decides, in either way.
    for matched in (same.any(dim=0), same.any(dim=1)):
        assert matched.float().mean() >= 0.95


@pytest.mark.parametrize("name", ["mask", "mask v2", "faster, frozen"])
def test_converted_detectors_compute_the_same(name, tmp_path):
    theirs, config, opts = build(name)
    norm = [] if "frozen" in name else ["MODEL.RESNETS.NORM", "BN"]
    cfg = make_cfg(config, [*opts, *norm])
    kind, settings = convert(theirs.state_dict(), cfg, tmp_path)
    assert kind == "torchvision detector"
    assert settings == SETTINGS | (MASK_SETTINGS if "mask" in name else {})
    cfg = with_settings(cfg, settings)
    ours = build_model(cfg).eval()
    load_trained(ours, str(tmp_path / "b.pth"))
    check_outputs(theirs, ours, cfg)


def test_labels_of_coco(tmp_path):
    """A model with 80 classes gets those 80 of the 91 labels that COCO uses."""
    norm = functools.partial(FrozenBatchNorm2d, eps=0.0)
    theirs = shallow(norm)
    cfg = make_cfg(FASTER, [*SHALLOW, "MODEL.ROI_HEADS.NUM_CLASSES", "80"])
    kind, _ = convert(theirs.state_dict(), cfg, tmp_path)
    assert kind == "torchvision detector, of whose 90 classes the 80 of COCO are kept"
    params = torch.load(tmp_path / "b.pth")["model"]
    state = theirs.state_dict()
    predictor = "roi_heads.box_predictor."
    scores, boxes = state[predictor + "cls_score.bias"], state[predictor + "bbox_pred.weight"]
    # 13 is a stop sign, 12 is not used; 90 is the last one; and the background
    mine = params[predictor + "cls_score.bias"]
    assert len(mine) == 81 and torch.equal(mine[[0, 11, 79, 80]], scores[[1, 13, 90, 0]])
    mine = params[predictor + "bbox_pred.weight"]
    assert torch.equal(mine[44:48], boxes[52:56]) and torch.equal(mine[-4:], boxes[-4:])


def test_older_names(tmp_path):
    """Of the files that torchvision published before its heads could have norms."""
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    cfg = make_cfg(MASK, ["MODEL.RESNETS.NORM", "BN"])
    convert(theirs.state_dict(), cfg, tmp_path)
    expected = torch.load(tmp_path / "b.pth")["model"]
    old = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("rpn.head.conv.0.0", "rpn.head.conv")
        if ".inner_blocks." in name or ".layer_blocks." in name:
            name = name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        for k in range(4):
            name = name.replace(f"mask_head.{k}.0", f"mask_head.mask_fcn{k + 1}")
        old[name] = value
    assert "backbone.fpn.inner_blocks.3.weight" in old and len(old) == len(theirs.state_dict())
    convert(old, cfg, tmp_path)
    for name, value in torch.load(tmp_path / "b.pth")["model"].items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("build_resnet, depth", [(resnet50, 50), (resnet101, 101)])
def test_classifiers_start_a_training(build_resnet, depth, tmp_path):
    theirs = randomize_classifier(build_resnet())
    opts = ["MODEL.RESNETS.DEPTH", str(depth), "MODEL.RESNETS.NORM", "BN"]
    cfg = make_cfg(FASTER, opts)
    assert convert(theirs.state_dict(), cfg, tmp_path) == ("torchvision ImageNet classifier", {})
    ours = build_model(cfg).eval()
    left = load_to_start(ours, str(tmp_path / "b.pth"))
    assert left and not any(name.startswith("backbone.bottom_up") for name in left)
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 64)
        res5 = ours.backbone.bottom_up(x.flip(1))["res5"]  # BGR
        children = torch.nn.Sequential(*list(theirs.children())[:-2])
        assert_close(res5, children(x))


def randomize_classifier(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.6, 0.9)
    return model.eval()


def test_what_does_not_fit(tmp_path):
    state = shallow(FrozenBatchNorm2d).state_dict()

    def fails(state, *opts):
        with pytest.raises(ValueError) as error:
            convert(state, make_cfg(FASTER, [*SHALLOW, *opts]), tmp_path)
        return str(error.value)

    assert "MODEL.PIXEL_STD is [1.0, 1.0, 1.0]" in fails(state, "MODEL.PIXEL_STD", "[1.0,1.0,1.0]")
    assert "STRIDE_IN_1X1 is True" in fails(state, "MODEL.RESNETS.STRIDE_IN_1X1", "True")
    assert "res3 has 1 blocks in the file and 4 in the config" in fails(
        state, "MODEL.RESNETS.DEPTH", "50"
    )
    message = fails(state, "MODEL.ROI_HEADS.NUM_CLASSES", "20")
    assert "cls_score.bias is float32 (91,), expected float (21,)" in message
    state["backbone.body.bn1.running_var"][3] = 0
    state["backbone.body.layer1.0.bn9.weight"] = torch.ones(4)
    del state["rpn.head.cls_logits.bias"]
    message = fails(state)
    assert "backbone.body.bn1.running_var has variances that are not above 0" in message
    assert "no parameter for\n    backbone.body.layer1.0.bn9.weight" in message
    assert "no array for\n    proposal_generator.rpn_head.objectness_logits.bias" in message


def test_tiny_variances_of_frozen_norms(tmp_path):
    """Published ones have channels that are almost constant; the frozen norm has no epsilon."""
    state = shallow(FrozenBatchNorm2d).state_dict()
    state["backbone.body.bn1.running_var"][:] = 1e-12
    state["backbone.body.bn1.weight"][:] = 1e-7
    convert(state, make_cfg(FASTER, SHALLOW), tmp_path)
    params = torch.load(tmp_path / "b.pth")["model"]
    norm = "backbone.bottom_up.stem.conv1.norm."
    scale = params[norm + "weight"] / (params[norm + "running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(scale, torch.full((64,), 0.1))
