"""Scales and flips: what meets in which NMS, by a model that sees boxes known beforehand."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data.transforms import ResizeShortestEdge, apply_augmentations
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.modeling import BoxOutputLayers, MultiScaleTTA
from dcn_projects.modeling.test_time_augmentation import augmentation_options
from tests.layers.operators.soft_nms import BOXES, PUBLISHED
from tests.modeling.narrow_models import make_rfcn_cfg

HEIGHT, WIDTH = 300, 400
SCALES = [[150, 1000], [300, 1000], [600, 700]]  # the last one is held to 525 x 700
SIZES = [(150, 200), (300, 400), (525, 700)]


def make_cfg(**aug):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.001
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG.SCALES = SCALES
    cfg.TEST.AUG.FLIP = False
    cfg.TEST.AUG.MERGE = "raw"
    for key, value in aug.items():
        cfg.TEST.AUG[key] = value
    return cfg


def make_input():
    """An image whose left half is bright, so that a mirrored one is known."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[:, :, : WIDTH // 2] = 255
    return {"image": image, "height": HEIGHT, "width": WIDTH}


class Seer(GeneralizedRCNN):
    """Finds given boxes: in the i-th view those of `seen[i]`, pairs of a box of the original image
    and its score."""

    def __init__(self, cfg, seen):
        nn.Module.__init__(self)
        self.seen, self.views, self.batches = seen, [], []
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = BoxOutputLayers(cfg, ShapeSpec(channels=1))

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        logits, proposals = [], []
        self.batches.append(len(batched_inputs))
        for x in batched_inputs:
            height, width = x["image"].shape[1:]
            boxes, scores = self.seen[len(self.views)]
            scores = torch.tensor(scores)
            boxes = torch.tensor(boxes).view(-1, 4) * (width / WIDTH)
            mirrored = bool(x["image"][0, 0, 0] == 0)
            if mirrored:
                boxes = torch.stack(
                    (width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1
                )
            self.views.append((height, width, mirrored))
            logits.append(torch.stack((scores, 1 - scores), dim=1).log())
            proposals.append(Instances((height, width), proposal_boxes=Boxes(boxes)))
        logits = torch.cat(logits)
        predictions = logits, torch.zeros(len(logits), 4)
        return self.roi_heads.box_predictor.inference(predictions, proposals)[0]


EXCLUSIVE = [[x0, y0, x1 + 1.0, y1 + 1.0] for x0, y0, x1, y1 in BOXES]
SCORES = [0.9, 0.8, 0.7, 0.6, 0.5]


def look(cfg, views):
    """`views`: for each view the indices of the published boxes that it sees."""
    seen = [([EXCLUSIVE[i] for i in view], [SCORES[i] for i in view]) for view in views]
    model = Seer(cfg, seen)
    return MultiScaleTTA(cfg, model)([make_input()])[0]["instances"], model


@pytest.mark.parametrize("method,case,order,values", PUBLISHED)
@pytest.mark.parametrize("views", [[[0, 1], [2], [3, 4]], [[], [4, 3, 2, 1, 0], []]], ids=str)
def test_one_nms_over_all_views(method, case, order, values, views):
    """The published values, whichever view a box was seen in."""
    cfg = make_cfg()
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    cfg.MODEL.ROI_HEADS.SOFT_NMS_SIGMA = case.get("sigma", 0.5)
    found, model = look(cfg, views)
    assert model.views == [(*size, False) for size in SIZES]
    assert_close(found.pred_boxes.tensor, torch.tensor(EXCLUSIVE)[order], rtol=1e-5, atol=1e-4)
    assert_close(found.scores, torch.tensor(values), rtol=0, atol=1e-5)
    assert found.image_size == (HEIGHT, WIDTH)


def test_merging_detections_suppresses_twice():
    """B (0.8) meets A (0.9) in its view, with IoU 8100 / 11900, and once more in the merge."""
    cfg = make_cfg(MERGE="detections")
    cfg.MODEL.ROI_HEADS.NMS_TYPE = "linear"
    found, _ = look(cfg, [[0, 1], [], []])
    overlap = 8100 / 11900
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * (1 - overlap) ** 2], rel=1e-4)
    cfg.TEST.AUG.MERGE = "raw"
    found, _ = look(cfg, [[0, 1], [], []])
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * (1 - overlap)], rel=1e-4)


@pytest.mark.parametrize("merge", ["raw", "detections"])
def test_flips(merge):
    """A box seen in a view and its mirror image is one box; one seen in the mirror is found."""
    cfg = make_cfg(FLIP=True, MERGE=merge)
    found, model = look(cfg, [[0], [0, 3], [], [], [0], [0]])
    assert model.views == [(*size, flip) for size in SIZES for flip in (False, True)]
    assert_close(found.pred_boxes.tensor, torch.tensor(EXCLUSIVE)[[0, 3]], rtol=1e-5, atol=1e-4)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("merge", ["raw", "detections"])
@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_nothing_found(merge, method):
    cfg = make_cfg(MERGE=merge)
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    found, _ = look(cfg, [[], [], []])
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)


@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_cap_counts_the_merged_boxes(method):
    cfg = make_cfg()
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    cfg.TEST.DETECTIONS_PER_IMAGE = 1
    found, _ = look(cfg, [[4], [3], [0]])
    assert found.scores.tolist() == pytest.approx([0.9])


def test_scores_below_the_threshold_take_no_part():
    cfg = make_cfg()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.65
    found, _ = look(cfg, [[0], [3], [4]])
    assert found.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("merge,batches", [("raw", [1, 1, 1]), ("detections", [3])])
def test_views_that_pass_together(merge, batches):
    """Padding to the size of the largest changes what a network says of the others."""
    assert look(make_cfg(MERGE=merge), [[0], [0], [0]])[1].batches == batches


def test_scales_of_detectron2():
    """Without SCALES they are MIN_SIZES, below MAX_SIZE."""
    cfg = make_cfg(SCALES=[], MIN_SIZES=(150, 600), MAX_SIZE=700)
    _, model = look(cfg, [[0], [0]])
    assert [view[:2] for view in model.views] == [SIZES[0], SIZES[2]]


def test_the_head_is_as_before():
    cfg = make_cfg()
    model = Seer(cfg, [])
    before = dict(vars(model.roi_heads.box_predictor))
    with pytest.raises(IndexError):  # it has nothing to see
        MultiScaleTTA(cfg, model)([make_input()])
    assert vars(model.roi_heads.box_predictor) == before


def make_image(height=90, width=130):
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 9, 13, generator=generator) * 255
    image = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return image.to(torch.uint8)


def make_rfcn(cfg):
    """Weights large enough for scores that differ."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, p in model.roi_heads.score_maps.named_parameters():
        if "offset" not in name:
            nn.init.normal_(p, std=0.2)
    return model


def resized(image, short, long):
    pixels, _ = apply_augmentations(
        [ResizeShortestEdge(short, long)], image.permute(1, 2, 0).numpy()
    )
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def assert_same_detections(actual, expected):
    assert len(actual) == len(expected) > 5
    assert_close(actual.scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["hard", "linear", "gaussian"])
def test_one_scale_is_the_model_itself(method):
    cfg = make_rfcn_cfg()
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    cfg.TEST.AUG.SCALES, cfg.TEST.AUG.FLIP, cfg.TEST.AUG.MERGE = [[120, 150]], False, "raw"
    model, image = make_rfcn(cfg), make_image()
    with torch.no_grad():
        size = {"height": image.shape[1], "width": image.shape[2]}
        (plain,) = model([{"image": resized(image, 120, 150), **size}])
        (merged,) = MultiScaleTTA(cfg, model)([{"image": image, **size}])
    assert_same_detections(merged["instances"], plain["instances"])


def test_hard_merge_of_detections_is_detectron2():
    """With heads that are not those of the MXNet code, whose NMS is another."""
    cfg = make_mask_rcnn_cfg("DeformROIHeads")
    cfg.merge_from_list("MODEL.MASK_ON False TEST.AUG.MERGE detections TEST.AUG.SCALES []".split())
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (64, 96, 128), 150, True
    torch.manual_seed(0)
    model, image = build_model(cfg).eval(), make_image()
    inputs = [{"image": image, "height": 45, "width": 65}]
    with torch.no_grad():
        expected = GeneralizedRCNNWithTTA(cfg, model)(inputs)[0]["instances"]
        actual = MultiScaleTTA(cfg, model)(inputs)[0]["instances"]
    expected = expected[expected.pred_boxes.nonempty()]
    assert len(actual) > 5
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)


def make_mask_rcnn_cfg(heads):
    cfg = get_cfg()
    add_dcn_config(cfg)
    base = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(model_zoo.get_config_file(base))
    cfg.merge_from_list(
        f"""MODEL.DEVICE cpu MODEL.WEIGHTS '' MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.NORM BN
        MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.STEM_OUT_CHANNELS 16
        MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8
        MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.NAME {heads}
        TEST.DETECTIONS_PER_IMAGE 20 TEST.AUG.MERGE raw TEST.AUG.SCALES [[96,150]]
        TEST.AUG.FLIP False""".split()
    )
    return cfg


@pytest.mark.parametrize("method", ["hard", "gaussian"])
def test_masks(method):
    """They are predicted for the merged boxes, as in detectron2."""
    cfg = make_mask_rcnn_cfg("OHEMROIHeads")
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    torch.manual_seed(0)
    model, image = build_model(cfg).eval(), make_image()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=5)
    size = {"height": image.shape[1], "width": image.shape[2]}
    with torch.no_grad():
        (plain,) = model([{"image": resized(image, 96, 150), **size}])
        (merged,) = MultiScaleTTA(cfg, model)([{"image": image, **size}])
        cfg.TEST.AUG.FLIP, cfg.TEST.AUG.SCALES = True, [[96, 150], [64, 150]]
        (views,) = MultiScaleTTA(cfg, model)([{"image": image, **size}])
    assert_same_detections(merged["instances"], plain["instances"])
    masks = [x["instances"].pred_masks for x in (merged, plain)]
    assert (masks[0] != masks[1]).float().mean() < 1e-3 and masks[0].any()
    assert views["instances"].pred_masks.shape[1:] == image.shape[1:]


@pytest.mark.parametrize(
    "heads, method",
    [
        ("CascadeROIHeads", "hard"),
        ("DeformCascadeROIHeads", "hard"),
        ("DeformCascadeROIHeads", "linear"),
        ("DeformCascadeROIHeads", "gaussian"),
    ],
)
def test_cascades(heads, method):
    """One scale is the model itself, and "detections" of several scales are merged."""
    cfg = make_mask_rcnn_cfg(heads)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.ROI_HEADS.NMS_TYPE = method
    torch.manual_seed(0)
    model, image = build_model(cfg).eval(), make_image()
    for outputs in model.roi_heads.box_predictor:
        nn.init.normal_(outputs.cls_score.weight, std=0.02)
    size = {"height": image.shape[1], "width": image.shape[2]}
    with torch.no_grad():
        (plain,) = model([{"image": resized(image, 96, 150), **size}])
        (merged,) = MultiScaleTTA(cfg, model)([{"image": image, **size}])
        assert_same_detections(merged["instances"], plain["instances"])
        cfg.TEST.AUG.SCALES, cfg.TEST.AUG.MERGE = [[96, 150], [64, 150]], "detections"
        (merged,) = MultiScaleTTA(cfg, model)([{"image": image, **size}])
    assert len(merged["instances"]) > 5
    assert merged["instances"].pred_masks.shape[1:] == image.shape[1:]


def test_unknown_outputs_are_refused():
    cfg = make_cfg()
    model = Seer(cfg, [])
    model.roi_heads.box_predictor = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="TEST.AUG.MERGE raw: Module has no box_predictor"):
        MultiScaleTTA(cfg, model)


MISTAKES = [
    (dict(MERGE="union"), "TEST.AUG.MERGE .*union"),
    (dict(SCALES=[480, 576]), "TEST.AUG.SCALES .*480"),
    (dict(SCALES=[[480, 800, 1]]), r"TEST.AUG.SCALES .*\[480, 800, 1\]"),
    (dict(SCALES=[[800, 480]]), r"TEST.AUG.SCALES .*\[800, 480\]"),
    (dict(SCALES=[[0, 480]]), r"TEST.AUG.SCALES .*\[0, 480\]"),
    (dict(SCALES=[], MIN_SIZES=()), "TEST.AUG.SCALES .*empty"),
]


@pytest.mark.parametrize("aug,message", MISTAKES)
def test_bad_keys_are_named(aug, message):
    with pytest.raises(ValueError, match=message):
        augmentation_options(make_cfg(**aug))
