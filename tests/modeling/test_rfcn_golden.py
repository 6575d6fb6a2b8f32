"""The recorded official R-FCN, converted from its `.params` file, gives the recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import convert_weights
from tests.checkpoint.params_writer import write_params
from tests.checkpoint.seeded_params import load_network

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests/goldens/mxnet_nets"
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of deltas, in the config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The config as it is, with the checkpoint that the conversion writes for it."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(ROOT / "configs/R-FCN/rfcn_R_101_C5_coco.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    folder = tmp_path_factory.mktemp("weights")
    source, output = folder / "rfcn-0000.params", folder / "rfcn.pkl"
    write_params(source, load_network(GOLDENS, "rfcn"))
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert convert_weights(source, output, cfg, shapes)[0] == "MXNet R-FCN"
    DetectionCheckpointer(model).load(str(output))
    return model


@pytest.fixture(scope="module", params=["a", "b"])
def case(request, model):
    """The recorded arrays of a case, and what the model makes of its picture."""
    archive = np.load(GOLDENS / "rfcn.npz")
    name = request.param
    recorded = {k[2:]: archive[k] for k in archive.files if k.startswith(f"{name}/")}
    info = json.loads(str(archive["info"]))["cases"][name]
    height, width = recorded["image"].shape[:2]
    bgr = torch.from_numpy(recorded["image"][:, :, ::-1].copy()).permute(2, 0, 1)
    scale = recorded["im_info"][0, 2]
    inputs = {"image": bgr, "height": height / scale, "width": width / scale}
    with torch.no_grad():
        images = model.preprocess_image([inputs])
        features = model.backbone(images.tensor)
        maps = model.roi_heads.score_maps(features)
        proposals, _ = model.proposal_generator(images, features, None)
        detections = model([inputs])[0]["instances"]
    return recorded, info, features, maps, proposals[0], detections


def thinned(full, info, layer):
    return full.numpy()[tuple(slice(None, None, s) for s in info["maps"][layer]["step"])]


@pytest.mark.parametrize("feature, layer", [("res4", "res4b22_relu"), ("res5", "res5c_relu")])
def test_features(case, feature, layer):
    recorded, info, features, *_ = case
    expected = recorded[f"maps/{layer}"]
    error = np.abs(thinned(features[feature], info, layer) - expected).max()
    assert error < 5e-5 * np.sqrt((expected**2).mean())


def test_score_maps(case):
    recorded, info, _, maps, *_ = case
    background_first = torch.roll(maps["cls"], 49, dims=1)
    expected = recorded["maps/rfcn_cls"]
    error = np.abs(thinned(background_first, info, "rfcn_cls") - expected).max()
    assert error < 5e-5 * np.sqrt((expected**2).mean())


def test_proposals(case):
    recorded, _, _, _, proposals, _ = case
    boxes = proposals.proposal_boxes.tensor.numpy() - (0, 0, 1, 1)  # to inclusive corners
    np.testing.assert_allclose(boxes, recorded["rois"][:, 1:], atol=2e-3)


@pytest.mark.parametrize("prefix", ["", "fixed_"])
def test_votes(case, model, prefix):
    recorded, info, _, maps, *_ = case
    rois = torch.from_numpy(recorded[f"{prefix}rois"]) + torch.tensor([0.0, 0, 0, 1, 1])
    with torch.no_grad():
        scores = model.roi_heads.vote(maps, rois, "cls").softmax(dim=1).roll(1, dims=1)
        deltas = model.roi_heads.vote(maps, rois, "bbox") / torch.tensor(WEIGHTS)
    assert not info[f"{prefix}unstable_rows"]
    np.testing.assert_allclose(scores, recorded[f"{prefix}cls_prob"], atol=2e-5)
    np.testing.assert_allclose(deltas, recorded[f"{prefix}bbox_pred"][:, 4:], atol=2e-5)


def test_detections(case):
    """All of them, also where the picture is scaled: the last NMS is on boxes in the picture."""
    recorded, *_, detections = case
    scale = recorded["im_info"][0, 2]
    boxes = detections.pred_boxes.tensor - torch.tensor([0, 0, 1, 1]) / scale  # inclusive corners
    ours = np.column_stack((detections.pred_classes + 1, detections.scores, boxes))
    expected = recorded["detections"]
    # Pixels and scores. The rounding of float32 in 101 layers depends on the processor.
    if scale == 1:
        np.testing.assert_allclose(ours, expected, atol=2e-3, rtol=1e-5)
    else:  # two have the same score
        assert len(ours) == len(expected)
        assert all(np.abs(ours - e).max(axis=1).min() < 2e-3 for e in expected)
