"""FPN of the MXNet code as a whole, from its YAML."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from dcn_projects.modeling import DeformBottleneckBlock
from dcn_projects.solver import build_optimizer
from tests.modeling.narrow_models import NARROW, check_training_step, detect, load, make_inputs

SMALL = f"""{NARROW} MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16
    MODEL.ROI_BOX_HEAD.OHEM_NUM 40 MODEL.ROI_HEADS.NUM_CLASSES 3"""


def small_model(leaf="deformable_fpn_R_101_coco", *opts):
    torch.manual_seed(0)
    return build_model(load(f"FPN/{leaf}", SMALL, *opts))


LEAVES = ["fpn_R_101_coco", "deformable_fpn_R_101_coco"]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_every_layer_learns(leaf, autocast):
    model = small_model(leaf)
    # The offset layers of levels without RoIs are used, but have nothing to learn.
    check_training_step(model, autocast, may_be_zero=r"level_poolers\.[1-3]\.")
    for detections, x in zip(detect(model, autocast), make_inputs()):
        height, width = detections.image_size
        assert (height, width) == x["image"].shape[1:]
        assert 0 < len(detections) <= 100
        assert (detections.scores > 0.001).all()
        assert (detections.pred_boxes.tensor[:, 2:] <= torch.tensor([width, height])).all()


def test_the_padding_is_black():
    model = small_model()
    inputs = make_inputs()
    images = model.preprocess_image(inputs)
    assert images.tensor.shape == (2, 3, 96, 128)
    for image, x in zip(images.tensor, inputs):
        height, width = x["image"].shape[1:]
        pixels = image * model.pixel_std + model.pixel_mean
        assert_close(pixels[:, :height, :width], x["image"].float(), rtol=0, atol=1e-4)
        outside = torch.ones(96, 128, dtype=torch.bool)
        outside[:height, :width] = False
        assert outside.any() and pixels[:, outside].abs().max() < 1e-4


@pytest.mark.parametrize("leaf", LEAVES)
def test_images_without_proposals(leaf):
    model = small_model(leaf)
    features = {f"p{i}": torch.randn(2, 16, 64 >> i, 96 >> i) for i in range(2, 7)}
    proposals, targets = [], []
    for _ in range(2):
        empty = Boxes(torch.zeros(0, 4))
        proposals.append(
            Instances((64, 96), proposal_boxes=empty, objectness_logits=torch.zeros(0))
        )
        targets.append(
            Instances((64, 96), gt_boxes=empty, gt_classes=torch.zeros(0, dtype=torch.long))
        )
    with EventStorage():
        _, losses = model.roi_heads(None, features, proposals, targets)
    sum(losses.values()).backward()
    assert losses["loss_cls"] == 0 and losses["loss_box_reg"] == 0
    assert all(p.grad is not None for p in model.roi_heads.parameters())
    model.eval()
    detections, _ = model.roi_heads(None, features, proposals)
    assert [len(d) for d in detections] == [0, 0]


# Trained parameters, and weight and bias of the frozen normalisation, of the original; without
# what it has twice: filters for background in the RPN, and boxes of the background.
PARAMETERS = {"fpn_R_101_coco": 66_063_591, "deformable_fpn_R_101_coco": 72_225_751}


@pytest.mark.parametrize("leaf", LEAVES)
def test_size_is_that_of_the_original(leaf):
    model = build_model(load(f"FPN/{leaf}"))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    count = sum(t.numel() for n, t in tensors.items() if n.endswith((".weight", ".bias")))
    assert count + 3 * (512 + 1) + 4 * (1024 + 1) == PARAMETERS[leaf]
    deformable = [n for n, m in model.named_modules() if isinstance(m, DeformBottleneckBlock)]
    expected = ["res3.3", "res4.22", "res5.0", "res5.1", "res5.2"] if "def" in leaf else []
    assert deformable == [f"backbone.bottom_up.{name}" for name in expected]
    frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}


def test_learning_rates():
    """The offsets of RoI pooling learn at 0.01, those of the convolutions as all else."""
    cfg = load("FPN/deformable_fpn_R_101_coco", SMALL)
    model = build_model(cfg)
    names = {p: name for name, p in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    rates = {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum("offset_fc" in name for name in rates) == 2 * 4
    for name, (rate, decay) in rates.items():
        factor = 0.01 if "offset_fc" in name else 2 if "objectness_logits" in name else 1
        assert rate == pytest.approx(0.01 * factor), name
        if "norm" not in name:
            assert decay == (0 if name.endswith("bias") else 0.0001), name


@pytest.mark.parametrize("leaf", LEAVES)
def test_schedule_is_that_of_the_original(leaf):
    """7 epochs of 117,266 images and their mirror images, steps after the 4th and the 6th."""
    solver = load(f"FPN/{leaf}").SOLVER
    images, batch = 2 * 117266, solver.IMS_PER_BATCH
    assert (solver.BASE_LR, batch) == (0.01, 8)
    assert solver.STEPS == (4 * images // batch, 6 * images // batch)
    assert solver.MAX_ITER == 7 * (images // batch)
    assert solver.CHECKPOINT_PERIOD == images // batch


@pytest.mark.parametrize(
    "option, message",
    [
        ("MODEL.ROI_BOX_HEAD.OHEM_NUM 5000", "OHEM_NUM is 5000"),
        ("MODEL.RESNETS.DEFORM_LAST_BLOCKS [1,1,1,0]", "DEFORM_LAST_BLOCKS is"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIMax", "POOLER_TYPE is ROIMax"),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 0", "POOLER_SAMPLING_RATIO is 0"),
        ("MODEL.FPN.IN_FEATURES ['res2','res3']", "MODEL.FPN.IN_FEATURES"),
        ("MODEL.RPN.IMAGE_STRIDE 0", "MODEL.RPN.IMAGE_STRIDE is 0"),
    ],
)
def test_impossible_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        small_model("deformable_fpn_R_101_coco", option)
