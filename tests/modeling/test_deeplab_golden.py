"""The recorded official DeepLab, converted from its `.params` file, gives the recorded numbers."""

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
MARGIN = 1e-3  # between the two best classes of a pixel, to compare which it is


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The config as it is, with the checkpoint that the conversion writes for it."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(ROOT / "configs/DeepLab/deeplab_R_101_cityscapes.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    folder = tmp_path_factory.mktemp("weights")
    source, output = folder / "deeplab_cityscapes-0000.params", folder / "deeplab.pkl"
    write_params(source, load_network(GOLDENS, "deeplab"))
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert convert_weights(source, output, cfg, shapes)[0] == "MXNet DeepLab"
    DetectionCheckpointer(model).load(str(output))
    return model


@pytest.fixture(scope="module", params=["a", "b"])
def case(request, model):
    """The recorded arrays of a case, and what the model makes of its picture."""
    archive = np.load(GOLDENS / "deeplab.npz")
    name = request.param
    recorded = {k[2:]: archive[k] for k in archive.files if k.startswith(f"{name}/")}
    steps = json.loads(str(archive["info"]))["cases"][name]["maps"]
    bgr = torch.from_numpy(recorded["image"][:, :, ::-1].copy()).permute(2, 0, 1)
    maps = {}
    layers = {"res5c_relu": model.backbone, "score": model.sem_seg_head.score}
    handles = [
        layer.register_forward_hook(lambda *args, name=name: maps.update({name: args[-1]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        (output,) = model([{"image": bgr}])
    for handle in handles:
        handle.remove()
    maps["res5c_relu"] = maps["res5c_relu"]["res5"]
    return recorded, steps, maps, output


@pytest.mark.parametrize("layer", ["res5c_relu", "score"])
def test_maps(case, layer):
    recorded, steps, maps, _ = case
    expected = recorded[f"maps/{layer}"]
    thinned = maps[layer].numpy()[tuple(slice(None, None, s) for s in steps[layer]["step"])]
    assert np.abs(thinned - expected).max() < 5e-5 * np.sqrt((expected**2).mean())


def test_probabilities(case):
    recorded, _, _, output = case
    probabilities = output["sem_seg"].softmax(dim=0)[None, :, ::4, ::4]
    np.testing.assert_allclose(probabilities, recorded["softmax"], atol=2e-5)


@pytest.mark.parametrize("classes", ["labels", "sem_seg"])
def test_classes(case, classes):
    recorded, _, _, output = case
    found = output["labels"] if classes == "labels" else output["sem_seg"].argmax(dim=0)
    sure = recorded["margin"] > MARGIN
    assert sure.mean() > 0.98 and len(np.unique(recorded["label"])) > 2
    np.testing.assert_array_equal(found.numpy()[sure], recorded["label"][sure])
