"""What is left of a checkpoint, what it loads into, and mistaken runs."""

import pytest
import torch
from detectron2.modeling import build_model

from dcn_projects.checkpoint import load_trained
from tests.modeling.narrow_models import make_mimic_cfg

TOOL = "tools/strip_checkpoint.py"


def make_model(architecture, heads, pooling):
    cfg = make_mimic_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = architecture, heads
    if not pooling:
        cfg.MODEL.ROI_BOX_HEAD.update(dict(POOLER_TYPE="ROIAlignV2", REDUCED_DIM=0))
        cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "ROIAlignV2"
    return build_model(cfg)


@pytest.mark.parametrize(
    "trained,plain,pooling",
    [
        (("MimicRCNN", "DeformROIHeads"), ("GeneralizedRCNN", "DeformROIHeads"), True),
        (("GeneralizedRCNN", "DynamicROIHeads"), ("GeneralizedRCNN", "OHEMROIHeads"), False),
    ],
)
def test_the_weights_are_left(trained, plain, pooling, run_program, tmp_path):
    model, without = make_model(*trained, pooling), make_model(*plain, pooling)
    content = {"model": model.state_dict(), "optimizer": {"x": torch.zeros(1000)}, "iteration": 9}
    torch.save(content, tmp_path / "model_final.pth")
    code, text = run_program(TOOL, tmp_path / "model_final.pth", tmp_path / "detector.pth")
    assert code == 0 and "detector.pth" in text
    stripped = torch.load(tmp_path / "detector.pth", weights_only=True)
    assert list(stripped) == ["model"]
    counted = {name for name in without.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(stripped["model"]) == counted < set(model.state_dict())
    for name, value in stripped["model"].items():
        assert torch.equal(value, model.state_dict()[name])
    for each in (model, without):
        load_trained(each, str(tmp_path / "detector.pth"))


@pytest.mark.parametrize(
    "content,names,message",
    [
        (None, ("a.pth", "b.pth"), "a.pth does not exist"),
        ({"model": {}}, ("a.pth", "b.npz"), "both files must be .pth"),
        ([1], ("a.pth", "b.pth"), "a.pth holds no parameters"),
        ({"model": 1}, ("a.pth", "b.pth"), "a.pth holds no parameters"),
        ({"model": {}}, ("a.pth", "gone/b.pth"), "there is no folder"),
    ],
)
def test_mistakes(content, names, message, run_program, tmp_path):
    source, output = (tmp_path / name for name in names)
    if content is not None:
        torch.save(content, source)
    code, text = run_program(TOOL, source, output)
    assert code == 1 and text.startswith("error: ") and message in text
    assert not output.exists()


def test_a_checkpoint_is_not_replaced(run_program, tmp_path):
    torch.save({"model": {}, "iteration": 3}, tmp_path / "a.pth")
    code, text = run_program(TOOL, tmp_path / "a.pth", tmp_path / "." / "a.pth")
    assert code == 1 and "would replace the checkpoint" in text
    assert torch.load(tmp_path / "a.pth")["iteration"] == 3
