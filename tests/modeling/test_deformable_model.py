"""Convolutions of detectron2's models, made deformable by config keys alone."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import dcn_projects.modeling
from dcn_projects import add_dcn_config
from dcn_projects.engine import check_keys
from dcn_projects.layers import DeformableConv2d
from dcn_projects.modeling import (
    DeformBottleneckBlock,
    build_deform_retinanet_resnet_fpn_backbone,
    meta_architecture,
)

SMALL = """
    MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 16
    MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.RPN.POST_NMS_TOPK_TRAIN 20 MODEL.RPN.POST_NMS_TOPK_TEST 5
    MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8 MODEL.BACKBONE.FREEZE_AT 0 INPUT.MIN_SIZE_TEST 64
    MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 MODEL.ROI_HEADS.NUM_CLASSES 3
    MODEL.RETINANET.NUM_CLASSES 3 MODEL.RETINANET.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 5
""".split()

# What becomes deformable -> config of detectron2, meta-architecture, patterns, number of layers
PLACES = {
    "res3-res5, RetinaNet": (
        "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
        "RetinaNet",
        ["backbone.bottom_up.res[3-5].*.conv2"],
        4 + 6 + 3,
    ),
    "res3, res4, and res5 of the C4 heads": (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
        "GeneralizedRCNN",
        ["backbone.res[34].*.conv2", "roi_heads.res5.*.conv2"],
        4 + 6 + 3,
    ),
    "FPN's outputs and the mask head": (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "GeneralizedRCNN",
        ["backbone.fpn_output*", "roi_heads.mask_head.mask_fcn*"],
        4 + 4,
    ),
}


def make_cfg(place, *options):
    config, meta_arch, select, _ = PLACES[place]
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(config))
    cfg.merge_from_list(SMALL)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEFORMABLE.META_ARCHITECTURE = meta_arch
    cfg.MODEL.DEFORMABLE.SELECT = select
    cfg.merge_from_list(list(options))
    return cfg


DEFORMABLE = ("MODEL.META_ARCHITECTURE", "build_deformable_model")


def image():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 96, 3), generator=generator, dtype=torch.uint8)


def dense_results(model):
    """What a model gives for the image before any boxes are chosen, or for boxes that are."""
    model.double()
    images = model.preprocess_image([{"image": image().permute(2, 0, 1)}])
    features = model.backbone(images.tensor)
    if hasattr(model, "head"):
        return model.head([features[name] for name in model.head_in_features])
    boxes = Boxes(torch.tensor([[4.0, 6, 50, 40], [30, 20, 90, 60]]).double())
    instances = Instances((64, 96), pred_boxes=boxes, pred_classes=torch.tensor([0, 2]))
    return model.roi_heads.forward_with_given_boxes(features, [instances])[0].pred_masks


@pytest.mark.parametrize("modulated", ["False", "True"])
@pytest.mark.parametrize("place", PLACES)
def test_starts_as_the_plain_model(place, modulated, tmp_path):
    """Two predictors with the weights of the plain model; detectron2 builds them of keys."""
    torch.manual_seed(0)
    plain = build_model(make_cfg(place))
    weights = str(tmp_path / "plain.pth")
    torch.save({"model": plain.state_dict()}, weights)
    keys = (*DEFORMABLE, "MODEL.DEFORMABLE.MODULATED", modulated, "MODEL.DEFORMABLE.NUM_GROUPS", 2)
    cfg = make_cfg(place, "MODEL.WEIGHTS", weights, *keys)
    predictor = DefaultPredictor(cfg)
    layers = [m for m in predictor.model.modules() if isinstance(m, DeformableConv2d)]
    assert len(layers) == PLACES[place][-1]
    assert all(m.modulated == (modulated == "True") for m in layers)
    assert len(predictor(image().numpy())["instances"]) == 5
    with torch.no_grad():
        before, after = dense_results(plain.eval()), dense_results(predictor.model)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
        for layer in layers:
            torch.nn.init.constant_(layer.conv_offset.bias, 0.5)
        after = dense_results(predictor.model)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_class_of_the_model(place):
    assert meta_architecture(make_cfg(place)).__name__ == PLACES[place][1]
    assert meta_architecture(make_cfg(place, *DEFORMABLE)).__name__ == PLACES[place][1]


@pytest.mark.parametrize("modulated", ["False", "True"])
@pytest.mark.parametrize("place", PLACES)
def test_select_alone_makes_the_model_deformable(place, modulated):
    """MODEL.META_ARCHITECTURE keeps the name of the model; both ways give the same model."""
    keys = ("MODEL.DEFORMABLE.MODULATED", modulated, "MODEL.DEFORMABLE.NUM_GROUPS", 2)
    cfg = make_cfg(place, *keys)
    torch.manual_seed(0)
    model = dcn_projects.modeling.build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE == PLACES[place][1]
    assert sum(isinstance(m, DeformableConv2d) for m in model.modules()) == PLACES[place][-1]
    torch.manual_seed(0)
    expected = build_model(make_cfg(place, *DEFORMABLE, *keys)).state_dict()
    actual = model.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_build_model_elsewhere():
    """Without SELECT the plain model; under the old name the deformable one, once."""
    place = "FPN's outputs and the mask head"
    plain = dcn_projects.modeling.build_model(make_cfg(place, "MODEL.DEFORMABLE.SELECT", []))
    assert not any(isinstance(m, DeformableConv2d) for m in plain.modules())
    model = dcn_projects.modeling.build_model(make_cfg(place, *DEFORMABLE))
    assert sum(isinstance(m, DeformableConv2d) for m in model.modules()) == PLACES[place][-1]


@pytest.mark.parametrize("place", PLACES)
def test_learns_its_offsets(place):
    torch.manual_seed(0)
    model = build_model(make_cfg(place, *DEFORMABLE))
    boxes = torch.tensor([[4.0, 6, 50, 40], [30, 20, 90, 60]])
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 6:30, 4:50] = masks[1, 20:60, 40:90] = True
    targets = dict(gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 2]), gt_masks=BitMasks(masks))
    inputs = {"image": image().permute(2, 0, 1), "instances": Instances((64, 96), **targets)}
    with EventStorage():
        losses = model([inputs])
    sum(losses.values()).backward()
    names = [name for name, m in model.named_modules() if isinstance(m, DeformableConv2d)]
    parameters = dict(model.named_parameters())
    still = [n for n in names if not parameters[f"{n}.conv_offset.weight"].grad.any()]
    assert not still


def test_retinanet_backbone():
    """DEFORM_ON_PER_STAGE below RetinaNet's pyramid, with detectron2's names and shapes."""
    pytest.importorskip("detectron2._C", reason="detectron2's DeformConv needs it")
    cfg = make_cfg("res3-res5, RetinaNet")
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    ours = build_deform_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    theirs = build_retinanet_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))
    expected = {
        k.replace("conv2_offset", "conv2.conv_offset"): v.shape
        for k, v in theirs.state_dict().items()
    }
    assert {k: v.shape for k, v in ours.state_dict().items()} == expected
    assert ours.output_shape() == theirs.output_shape()
    assert sum(isinstance(m, DeformBottleneckBlock) for m in ours.modules()) == 4 + 6 + 3
    assert list(ours(torch.zeros(1, 3, 64, 64))) == ["p3", "p4", "p5", "p6", "p7"]


@pytest.mark.parametrize(
    "options, message",
    [
        (("MODEL.DEFORMABLE.SELECT", []), r"MODEL.DEFORMABLE.SELECT is \[\]: .*no convolution"),
        (("MODEL.DEFORMABLE.SELECT", ["*.conv9"]), r"SELECT is .*matches \['\*.conv9'\]"),
        (("MODEL.DEFORMABLE.SELECT", ["*deconv"]), "mask_head.deconv is a ConvTranspose2d"),
    ],
)
def test_mistakes_name_the_key(options, message):
    cfg = make_cfg("FPN's outputs and the mask head", *DEFORMABLE, *options)
    with pytest.raises(ValueError, match=message):
        build_model(cfg)
    if cfg.MODEL.DEFORMABLE.SELECT:
        cfg = make_cfg("FPN's outputs and the mask head", *options)
        with pytest.raises(ValueError, match=message):
            dcn_projects.modeling.build_model(cfg)


@pytest.mark.parametrize("use", [build_model, meta_architecture, check_keys])
def test_a_model_within_itself(use):
    options = ("MODEL.DEFORMABLE.META_ARCHITECTURE", "build_deformable_model")
    cfg = make_cfg("FPN's outputs and the mask head", *DEFORMABLE, *options)
    with pytest.raises(ValueError, match="MODEL.DEFORMABLE.META_ARCHITECTURE must name"):
        use(cfg)
