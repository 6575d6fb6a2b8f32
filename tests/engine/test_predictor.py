import numpy as np
import pytest
import torch
from detectron2.data import Metadata

from dcn_projects.engine import build_predictor, read_config
from dcn_projects.engine.predictor import trained_config
from dcn_projects.layers import DeformableConv2d
from dcn_projects.modeling import build_model
from dcn_projects.vis import NarrowImageError

CONFIG = "FPN/fpn_R_14_digits.yaml"
SMALL = "MODEL.DEVICE=cpu INPUT.MIN_SIZE_TEST=64 MODEL.RPN.POST_NMS_TOPK_TEST=8".split()
SELECT = "MODEL.DEFORMABLE.SELECT=['backbone.bottom_up.res5.*.conv2']"


def test_model_of_which_convolutions_are_made_deformable(tmp_path):
    opts = [*SMALL, SELECT]
    model = build_model(read_config(CONFIG, opts))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = build_predictor(CONFIG, tmp_path / "model.pth", opts)
    assert any(isinstance(module, DeformableConv2d) for module in predictor.model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], value), name
    assert not predictor.model.training and isinstance(predictor.metadata, Metadata)
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    assert predictor(image)["instances"].image_size == (64, 80)


FAMILIES = {  # and whether they pad their inputs
    "R-FCN/deformable_rfcn_R_14_C5_digits.yaml": False,
    "FPN/fpn_R_14_digits.yaml": True,
    "DeepLab/deeplab_R_14_digits.yaml": False,
}


@pytest.mark.parametrize("config", FAMILIES)
def test_narrow_images(config, tmp_path):
    """Those of which nothing is left, and those that are too narrow for a layer without padding."""
    opts = [*SMALL, "INPUT.MAX_SIZE_TEST=200"]
    torch.manual_seed(0)
    torch.save({"model": build_model(read_config(config, opts)).state_dict()}, tmp_path / "m.pth")
    predictor = build_predictor(config, tmp_path / "m.pth", opts)
    for height, width in ((1, 60), (60, 1), (1, 1)):
        assert predictor(np.full((height, width, 3), 90, np.uint8))
    narrow = np.full((2, 300, 3), 90, np.uint8)
    if FAMILIES[config]:
        assert predictor(narrow)
    else:
        with pytest.raises(NarrowImageError, match="has 300 x 2 pixels, .* would see 200 x 1:"):
            predictor(narrow)
    with pytest.raises(NarrowImageError, match="has 1 x 900 pixels, .* would see 0 x 200:"):
        predictor(np.full((900, 1, 3), 90, np.uint8))
    predictor.model = lambda inputs: (_ for _ in ()).throw(RuntimeError("of another kind"))
    with pytest.raises(RuntimeError, match="of another kind"):
        predictor(np.full((60, 60, 3), 90, np.uint8))


def test_format_of_images():
    with pytest.raises(ValueError, match=f"{CONFIG}: INPUT.FORMAT is YUV-BT.601, expected RGB"):
        trained_config(CONFIG, "model.pth", [*SMALL, "INPUT.FORMAT=YUV-BT.601"])


def test_weights_of_the_config_and_of_the_output_folder(tmp_path):
    weights = tmp_path / "model_0000004.pth"
    torch.save({"model": build_model(read_config(CONFIG, SMALL)).state_dict()}, weights)
    opts = [*SMALL, f"OUTPUT_DIR={tmp_path}"]
    with pytest.raises(ValueError, match="has no checkpoint"):
        build_predictor(CONFIG, opts=[*opts, "MODEL.WEIGHTS="])
    given = build_predictor(CONFIG, opts=[*opts, f"MODEL.WEIGHTS={weights}"])
    (tmp_path / "last_checkpoint").write_text(weights.name)
    for predictor in (given, build_predictor(CONFIG, opts=opts)):
        assert predictor.cfg.MODEL.WEIGHTS == str(weights)
    with pytest.raises(ValueError, match="path of the weights is empty"):
        build_predictor(CONFIG, "", opts)
