"""Small RoI heads of every kind, and maps, proposals and targets for them."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, Instances
from torch import nn

from dcn_projects import add_dcn_config

K = 5
SHAPES = {
    "p2": ShapeSpec(channels=6, stride=4),
    "p3": ShapeSpec(channels=6, stride=8),
    "res5": ShapeSpec(channels=6, stride=16),
}


def make_heads_cfg(name, **box_head):
    """Small heads that label all proposals and keep 4."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.ROI_HEADS.update(
        dict(NAME=name, NUM_CLASSES=K, BATCH_SIZE_PER_IMAGE=64, POSITIVE_FRACTION=1.0)
    )
    cfg.MODEL.ROI_BOX_HEAD.update(dict(OHEM_NUM=4, SMOOTH_L1_BETA=1.0, POOLER_RESOLUTION=3))
    if name == "RFCNROIHeads":
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
        cfg.MODEL.ROI_BOX_HEAD.update(dict(POOLER_TYPE="PSROIPool", REDUCED_DIM=6))
    else:
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.ROI_BOX_HEAD.update(dict(NAME="FastRCNNConvFCHead", NUM_FC=1, FC_DIM=16))
    if name == "MXNetROIHeads":
        cfg.MODEL.ROI_BOX_HEAD.update(dict(POOLER_TYPE="DeformROIPool", POOLER_SAMPLING_RATIO=2))
    cfg.MODEL.ROI_BOX_HEAD.update(box_head)
    return cfg


def make_predictions(agnostic, counts=(30, 7), objects=True):
    """Predictions with gradients, and labelled proposals; `counts` of each image."""
    torch.manual_seed(0)
    proposals = []
    for count in counts:
        corner = torch.rand(count, 2) * 50
        boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 40), dim=1)
        p = Instances((100, 100), proposal_boxes=Boxes(boxes))
        p.gt_classes = torch.randint(0, K + 1, (count,)) if objects else torch.full((count,), K)
        if objects:
            p.gt_boxes = Boxes(boxes + torch.randn(count, 4))
        proposals.append(p)
    total = sum(counts)
    scores = torch.randn(total, K + 1, requires_grad=True)
    deltas = torch.randn(total, 4 if agnostic else 4 * K, requires_grad=True)
    return (scores, deltas), proposals


def make_heads(cfg):
    """The heads, and maps, proposals and targets for them: three objects in each image."""
    torch.manual_seed(0)
    heads = build_roi_heads(cfg, SHAPES)
    for p in heads.parameters():  # errors of many sizes
        nn.init.normal_(p, std=0.2)
    if cfg.MODEL.ROI_HEADS.NAME == "RFCNROIHeads":
        maps = {"res5": torch.randn(2, 6, 7, 7)}
    else:
        maps = {"p2": torch.randn(2, 6, 25, 25), "p3": torch.randn(2, 6, 13, 13)}
    maps = {name: x.requires_grad_() for name, x in maps.items()}
    _, proposals = make_predictions(agnostic=True)
    for p in proposals:
        p.remove("gt_boxes")
        p.remove("gt_classes")
        p.objectness_logits = torch.zeros(len(p))
    targets = [Instances((100, 100)) for _ in proposals]
    for target, p in zip(targets, proposals):
        target.gt_boxes = Boxes(p.proposal_boxes.tensor[:3] + 2.0)
        target.gt_classes = torch.tensor([0, 3, K - 1])
    return heads, maps, proposals, targets
