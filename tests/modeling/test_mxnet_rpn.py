import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.modeling import MXNetAnchorGenerator, MXNetRPNHead

# Cell (0, 0), from the rounded sizes of the original: (ratio, scale) -> box
ANCHORS = {
    (0, 0): (-38, -16, 54, 32),
    (0, 3): (-360, -184, 376, 200),
    (1, 1): (-56, -56, 72, 72),
    (2, 0): (-14, -36, 30, 52),
    (2, 2): (-80, -168, 96, 184),
}


# Width and height of the anchors of each level of a pyramid, by ratio; of the original.
PYRAMID_ANCHORS = {
    4: [(48, 24), (32, 32), (24, 48)],
    8: [(88, 48), (64, 64), (48, 96)],
    16: [(184, 96), (128, 128), (88, 176)],
    32: [(360, 176), (256, 256), (184, 368)],
    64: [(728, 368), (512, 512), (360, 720)],
}


def test_anchors_of_a_pyramid():
    generator = MXNetAnchorGenerator(
        sizes=[[8 * stride] for stride in PYRAMID_ANCHORS],
        aspect_ratios=[[0.5, 1, 2]],
        strides=list(PYRAMID_ANCHORS),
        offset=0.5,
    )
    maps = [torch.zeros(1, 8, 2, 3)] * len(PYRAMID_ANCHORS)
    for (stride, sizes), anchors in zip(PYRAMID_ANCHORS.items(), generator(maps)):
        x0, y0, x1, y1 = anchors.tensor.view(2, 3, 3, 4)[0, 0].unbind(1)
        assert list(zip((x1 - x0).tolist(), (y1 - y0).tolist())) == sizes
        assert (x0 + x1 == stride).all() and (y0 + y1 == stride).all()


def test_anchors():
    generator = MXNetAnchorGenerator(
        sizes=[[64, 128, 256, 512]], aspect_ratios=[[0.5, 1, 2]], strides=[16], offset=0.5
    )
    (anchors,) = generator([torch.zeros(1, 8, 3, 5)])
    anchors = anchors.tensor.view(3, 5, 3, 4, 4)
    for (ratio, scale), box in ANCHORS.items():
        assert anchors[0, 0, ratio, scale].tolist() == list(box)
    assert_close(anchors[2, 4] - anchors[0, 0], torch.tensor([64.0, 32, 64, 32]).expand(3, 4, 4))


@pytest.fixture
def rpn():
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "MXNetRPN"
    cfg.MODEL.RPN.HEAD_NAME = "MXNetRPNHead"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "MXNetAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 2000
    cfg.MODEL.RPN.NMS_THRESH = 1.0  # keep all, so that every cell can be seen
    cfg.MODEL.RPN.BOUNDARY_THRESH = 1
    torch.manual_seed(0)
    return build_proposal_generator(cfg, {"res4": ShapeSpec(channels=4, stride=16)}).eval()


def test_only_whole_cells_propose(rpn):
    """Two images in a batch padded to 5 x 6 cells: each proposes from its own whole cells only,
    and a box that lies wholly outside its image is clipped to one pixel rather than dropped."""
    sizes = [(47, 64), (80, 95)]
    images = ImageList(torch.zeros(2, 3, 80, 96), sizes)
    torch.nn.init.constant_(rpn.rpn_head.anchor_deltas.bias, 3.0)  # far to the bottom right
    with torch.no_grad():
        proposals, _ = rpn(images, {"res4": torch.randn(2, 4, 5, 6)})
    for p, (height, width) in zip(proposals, sizes):
        assert len(p) == (height // 16) * (width // 16) * 6
        boxes = p.proposal_boxes.tensor
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
        assert boxes[:, 2].max() <= width and boxes[:, 3].max() <= height


SIZES = [(47, 62), (70, 33)]  # the images of a batch; up to the next multiple of 8 with padding
PADDED = [(48, 64), (72, 40)]


def make_pyramid(image_stride=8, **rpn):
    """An RPN on two levels and inputs for it, in which many boxes overlap."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "MXNetRPN"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.RPN.CONV_DIMS = [32]  # so many that no two logits are equal
    cfg.MODEL.RPN.IMAGE_STRIDE = image_stride
    cfg.MODEL.RPN.update(rpn)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "MXNetAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    torch.manual_seed(0)
    shapes = {f"p{i}": ShapeSpec(channels=4, stride=2**i) for i in (2, 3)}
    model = build_proposal_generator(cfg, shapes).eval()
    nn.init.normal_(model.rpn_head.anchor_deltas.weight, std=0.5)
    nn.init.normal_(model.rpn_head.objectness_logits.weight, std=0.5)
    features = {"p2": torch.randn(2, 4, 18, 16), "p3": torch.randn(2, 4, 9, 8)}
    return model, ImageList(torch.zeros(2, 3, 72, 64), SIZES), features


def slow_proposals(model, features, image, size, pre_topk, post_topk, thresh):
    """In loops: all boxes of all levels in one list, which is cut, suppressed and cut again."""
    height, width = size
    logits, deltas = model.rpn_head([features["p2"], features["p3"]])
    anchors = model.anchor_generator([features["p2"], features["p3"]])
    found = []
    for level, stride in enumerate((4, 8)):
        A = logits[level].shape[1]
        columns = logits[level].shape[3]
        for row in range(height // stride):
            for column in range(width // stride):
                for a in range(A):
                    anchor = anchors[level].tensor[(row * columns + column) * A + a].tolist()
                    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
                    dx, dy, dw, dh = deltas[level][image, 4 * a : 4 * a + 4, row, column].tolist()
                    x, y = anchor[0] + w / 2 + dx * w, anchor[1] + h / 2 + dy * h
                    w, h = w * math.exp(dw), h * math.exp(dh)
                    box = (
                        min(max(x - w / 2, 0), width - 1),
                        min(max(y - h / 2, 0), height - 1),
                        min(max(x + w / 2, 1), width),
                        min(max(y + h / 2, 1), height),
                    )
                    found.append((logits[level][image, a, row, column].item(), box))
    found.sort(key=lambda item: -item[0])

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        inter = max(w, 0) * max(h, 0)
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return inter / (sum(areas) - inter)

    kept = []
    for score, box in found[:pre_topk]:
        if all(iou(box, other) <= thresh for _, other in kept):
            kept.append((score, box))
    return kept[:post_topk]


@pytest.mark.parametrize("pre_topk, post_topk", [(10_000, 10_000), (60, 1000), (60, 20)])
@pytest.mark.parametrize("training", [False, True])
def test_levels_of_a_pyramid_compete(pre_topk, post_topk, training):
    """One top-k and one NMS over all levels, in an image that ends with its padding."""
    mode = "TRAIN" if training else "TEST"
    topk = {f"PRE_NMS_TOPK_{mode}": pre_topk, f"POST_NMS_TOPK_{mode}": post_topk}
    model, images, features = make_pyramid(NMS_THRESH=0.5, **topk)
    model.training = training
    targets = [Instances(size, gt_boxes=Boxes(torch.tensor([[4.0, 4, 20, 20]]))) for size in SIZES]
    with torch.no_grad(), EventStorage():
        proposals, _ = model(images, features, targets)
        for i, (p, size) in enumerate(zip(proposals, PADDED)):
            expected = slow_proposals(model, features, i, size, pre_topk, post_topk, 0.5)
            assert p.image_size == SIZES[i]
            assert_close(p.objectness_logits, torch.tensor([score for score, _ in expected]))
            boxes = torch.tensor([box for _, box in expected])
            assert_close(p.proposal_boxes.tensor, boxes, rtol=1e-5, atol=1e-4)


def test_proposals_end_with_the_image_or_with_its_padding():
    for stride, limits in ((1, SIZES), (8, PADDED)):
        model, images, features = make_pyramid(image_stride=stride)
        with torch.no_grad():
            proposals, _ = model(images, features)
        for p, (height, width) in zip(proposals, limits):
            corner = p.proposal_boxes.tensor[:, 2:].amax(dim=0)
            assert corner.tolist() == [width, height]


def test_large_deltas_are_not_bounded():
    """A box may grow by more than detectron2's factor of 62.5, and is then clipped."""
    model, images, features = make_pyramid()
    nn.init.zeros_(model.rpn_head.anchor_deltas.weight)
    for shrink in (5.0, 200.0):  # exp(200) is infinite
        with torch.no_grad():
            model.rpn_head.anchor_deltas.bias.copy_(torch.tensor([0.0, 0, shrink, -shrink] * 3))
            proposals, _ = model(images, features)
        for p, (_, width) in zip(proposals, PADDED):
            boxes = p.proposal_boxes.tensor
            assert (boxes[:, 0] == 0).all() and (boxes[:, 2] == width).all()


def test_an_image_smaller_than_a_cell_has_no_proposals():
    model, _, features = make_pyramid(image_stride=1)
    with torch.no_grad():
        proposals, _ = model(ImageList(torch.zeros(2, 3, 72, 64), [(3, 40), (3, 3)]), features)
    assert [len(p) for p in proposals] == [0, 0]


def test_image_stride_must_be_positive():
    with pytest.raises(ValueError, match="MODEL.RPN.IMAGE_STRIDE is 0"):
        make_pyramid(image_stride=0)


def test_losses(rpn):
    """Cross entropy: the mean over the sampled anchors. Boxes: divided by 256 always."""
    rpn.train()
    image = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])))
    feature = torch.randn(1, 4, 4, 4)
    anchors = rpn.anchor_generator([feature])
    with EventStorage():
        torch.manual_seed(1)
        labels, boxes = rpn.label_and_sample_anchors(anchors, [target])
        torch.manual_seed(1)
        _, losses = rpn(image, {"res4": feature}, [target])
    labels = labels[0]
    inside = anchors[0].inside_box((64, 64), 1)
    assert 0 < (labels >= 0).sum() < 256 and not (labels[~inside] >= 0).any()

    logits, deltas = (x[0] for x in rpn.rpn_head([feature]))
    logits = logits.permute(0, 2, 3, 1).flatten()
    deltas = deltas.view(-1, 4, 4, 4).permute(2, 3, 0, 1).reshape(-1, 4)
    sampled, positive = labels >= 0, labels == 1
    cls = F.binary_cross_entropy_with_logits(logits[sampled], labels[sampled].float())
    assert_close(losses["loss_rpn_cls"], cls)
    wanted = rpn.box2box_transform.get_deltas(anchors[0].tensor[positive], boxes[0][positive])
    assert_close(losses["loss_rpn_loc"], (deltas[positive] - wanted).abs().sum() / 256)


def test_an_object_at_the_border_has_a_positive_anchor(rpn):
    """Of all anchors the best for it crosses the border; of those inside one becomes positive."""
    box = torch.tensor([[0.0, 30, 20, 58]])
    (anchors,) = rpn.anchor_generator([torch.zeros(1, 4, 4, 4)])
    inside = anchors.inside_box((64, 64), 1)
    iou = pairwise_iou(Boxes(box), anchors)[0]
    best = iou[inside].max()
    assert best < iou.max() and best < 0.7
    target = Instances((64, 64), gt_boxes=Boxes(box))
    labels, matched = rpn.label_and_sample_anchors([anchors], [target])
    assert ((labels[0] == 1) == (inside & (iou == best))).all()
    assert_close(matched[0][labels[0] == 1], box)


def test_images_are_labelled_within_their_own_borders(rpn):
    """Also without objects, or with one that touches no anchor inside."""
    (anchors,) = rpn.anchor_generator([torch.zeros(1, 4, 6, 6)])
    for size, boxes in ((96, 96), [[8.0, 8, 40, 40]]), ((50, 70), []), ((20, 94), [[88, 0, 93, 2]]):
        boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        labels, _ = rpn.label_and_sample_anchors([anchors], [Instances(size, gt_boxes=boxes)])
        assert ((labels[0] >= 0) <= anchors.inside_box(size, 1)).all()
        assert (labels[0] == 1).any() == (size == (96, 96))
        assert (labels[0] == 0).any()


def test_objectness_starts_as_a_difference_of_two_filters():
    torch.manual_seed(0)
    head = MXNetRPNHead(in_channels=512, num_anchors=64, conv_dims=[512])
    assert head.objectness_logits.weight.std().item() == pytest.approx(0.01 * 2**0.5, rel=0.03)
    assert head.anchor_deltas.weight.std().item() == pytest.approx(0.01, rel=0.03)
