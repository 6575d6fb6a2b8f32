"""The heads of DCNv2: RoI pooling of box and mask head, on res5 or on a feature pyramid."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.layers import DeformROIPool

K, C = 3, 6
SHAPES = {
    "res5": ShapeSpec(channels=C, stride=16),
    "p2": ShapeSpec(channels=C, stride=4),
    "p3": ShapeSpec(channels=C, stride=8),
    "p4": ShapeSpec(channels=C + 1, stride=16),
}


def make_cfg(pooler="ModulatedDeformROIPool", features=("res5",), reduced=4):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.update(
        dict(NAME="DeformROIHeads", IN_FEATURES=list(features), NUM_CLASSES=K)
    )
    pooling = dict(POOLER_TYPE=pooler, POOLER_SAMPLING_RATIO=2, POOLER_FC_DIM=8)
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        head.update(pooling)
    box_head = dict(
        REDUCED_DIM=reduced, NAME="FastRCNNConvFCHead", NUM_FC=2, FC_DIM=8, POOLER_RESOLUTION=3
    )
    cfg.MODEL.ROI_BOX_HEAD.update(box_head)
    cfg.MODEL.ROI_MASK_HEAD.update(dict(NUM_CONV=1, CONV_DIM=5, POOLER_RESOLUTION=4))
    return cfg


def make_inputs(features):
    torch.manual_seed(0)
    maps = {f: torch.rand(2, C, 96 // SHAPES[f].stride, 96 // SHAPES[f].stride) for f in features}
    boxes = [[8.0, 10, 70, 64], [30, 20, 92, 90]]
    proposals, targets = [], []
    for box in boxes:
        p = Instances((96, 96), proposal_boxes=Boxes(torch.tensor([box])))
        p.objectness_logits = torch.zeros(1)
        proposals.append(p)
        mask = torch.zeros(1, 96, 96, dtype=torch.bool)
        mask[:, 30:60, 30:60] = True
        fields = dict(gt_boxes=Boxes(torch.tensor([box])), gt_masks=BitMasks(mask))
        targets.append(Instances((96, 96), gt_classes=torch.tensor([1]), **fields))
    return {k: v.requires_grad_() for k, v in maps.items()}, proposals, targets


@pytest.mark.parametrize("features, reduced", [(("res5",), 4), (("p2", "p3"), 0)], ids=str)
@pytest.mark.parametrize("pooler", ["ROIAlignV2", "DeformROIPool", "ModulatedDeformROIPool"])
def test_both_heads_pool_alike(pooler, features, reduced):
    heads = build_roi_heads(make_cfg(pooler, features, reduced), SHAPES)
    for p in heads.parameters():  # the last layers, too, which start at zero
        torch.nn.init.normal_(p, std=0.2)
    maps, proposals, targets = make_inputs(features)
    with EventStorage():
        _, losses = heads(None, maps, proposals, targets)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    for loss, branch in [("loss_cls", heads.box_pooler), ("loss_mask", heads.mask_pooler)]:
        parameters = dict(branch.named_parameters())
        of_layers = {"DeformROIPool": "offset_fc", "ModulatedDeformROIPool": "offset_mask_fc"}
        for kind in ("DeformROIPool", "ModulatedDeformROIPool"):
            assert any(of_layers[kind] in n for n in parameters) == (kind == pooler)
        if reduced:
            parameters["conv_new"] = heads.conv_new.weight
        if parameters:
            grads = torch.autograd.grad(losses[loss], parameters.values(), retain_graph=True)
            for name, grad in zip(parameters, grads):
                level_without_rois = "level_poolers.1" in name  # p3; these RoIs fit p2
                assert grad.any() != (level_without_rois and len(features) > 1), name

    heads.eval()
    with torch.no_grad():
        found, _ = heads(None, maps, proposals)
    assert all(i.pred_masks.shape[1:] == (1, 8, 8) for i in found)


def test_both_heads_read_the_narrowed_map():
    heads = build_roi_heads(make_cfg(), SHAPES).eval()
    torch.nn.init.normal_(heads.conv_new.bias)
    maps, proposals, _ = make_inputs(["res5"])
    weight, bias = heads.conv_new.weight[:, :, 0, 0], heads.conv_new.bias[:, None, None]
    narrow = (torch.einsum("dc,nchw->ndhw", weight, maps["res5"]) + bias).clamp(min=0)
    seen = []
    for pooler in (heads.box_pooler, heads.mask_pooler):
        pooler.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        heads(None, maps, proposals)
        heads.box_features(maps, [p.proposal_boxes for p in proposals])
    assert len(seen) == 3
    for (x,) in seen:
        assert_close(x, narrow)


def test_the_vector_of_a_roi_is_past_a_relu():
    """Two fully connected layers with ReLU after both."""
    heads = build_roi_heads(make_cfg(), SHAPES)
    maps, proposals, _ = make_inputs(["res5"])
    boxes = [p.proposal_boxes for p in proposals]
    pooled = heads.box_pooler([F.relu(heads.conv_new(maps["res5"]))], boxes)
    expected = F.relu(heads.box_head.fc2(F.relu(heads.box_head.fc1(pooled.flatten(1)))))
    assert_close(heads.box_features(maps, boxes), expected)


@pytest.mark.parametrize("pooler", ["DeformROIPool", "ModulatedDeformROIPool"])
def test_each_head_has_keys_of_its_own(pooler):
    cfg = make_cfg(pooler, ["p2", "p3"], reduced=0)
    of_box = dict(POOLER_GAMMA=0.3, POOLER_SAMPLING_RATIO=3, POOLER_FC_DIM=5)
    cfg.MODEL.ROI_BOX_HEAD.update({**of_box, "POOLER_SHARE_LEVELS": False})
    heads = build_roi_heads(cfg, SHAPES)
    found = [
        [
            (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.gamma)
            for layer in pooler.modules()
            if isinstance(layer, DeformROIPool)
        ]
        for pooler in (heads.box_pooler, heads.mask_pooler)
    ]
    assert found[0] == [((3, 3), scale, 3, 0.3) for scale in (1 / 4, 1 / 8)]
    assert found[1] == [((4, 4), scale, 2, 0.1) for scale in (1 / 4, 1 / 8)]
    if pooler == "ModulatedDeformROIPool":
        widths = [
            [branch[0].out_features for branch in pooler.offset_mask_fc]
            for pooler in (heads.box_pooler, heads.mask_pooler)
        ]
        assert widths == [[5, 5], [8]]


@pytest.mark.parametrize("head", ["ROI_BOX_HEAD", "ROI_MASK_HEAD"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("POOLER_FC_DIM", 0),
        ("POOLER_TYPE", "PSROIPool"),
        ("POOLER_RESOLUTION", 0),
        ("POOLER_SAMPLING_RATIO", 0),
    ],
)
def test_wrong_values_are_named(head, key, value):
    cfg = make_cfg()
    cfg.MODEL[head][key] = value
    with pytest.raises(ValueError, match=f"MODEL.{head}.{key} is {value}"):
        build_roi_heads(cfg, SHAPES)


def test_a_negative_width_is_named():
    with pytest.raises(ValueError, match="MODEL.ROI_BOX_HEAD.REDUCED_DIM is -1"):
        build_roi_heads(make_cfg(reduced=-1), SHAPES)


def test_levels_must_be_alike():
    with pytest.raises(ValueError, match="IN_FEATURES .'p3', 'p4'. differ .*6, 7"):
        build_roi_heads(make_cfg(features=("p3", "p4")), SHAPES)
