import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
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
