"""What is left of a checkpoint, what it loads into, and mistaken runs."""

import pytest
import torch
from detectron2.modeling import build_model

from dcn_projects.checkpoint import load_trained, training_only_names
from dcn_projects.engine import read_config

TOOL = "tools/strip_checkpoint.py"
CONFIG = "configs/DCNv2/mask_rcnn_R_14_FPN_gn_mdconv_mdpool_mimic_digits.yaml"


def make_model(architecture, heads, pooling):
    opts = ["MODEL.DEVICE=cpu", f"MODEL.META_ARCHITECTURE={architecture}"]
    opts += [f"MODEL.ROI_HEADS.NAME={heads}", "MODEL.RESNETS.NORM=BN"]
    if not pooling:
        opts += [f"MODEL.ROI_{head}_HEAD.POOLER_TYPE=ROIAlignV2" for head in ("BOX", "MASK")]
    return build_model(read_config(CONFIG, opts))


@pytest.mark.parametrize(
    "trained,plain,pooling",
    [
        (("MimicRCNN", "DeformROIHeads"), ("GeneralizedRCNN", "DeformROIHeads"), True),
        (("GeneralizedRCNN", "DynamicROIHeads"), ("GeneralizedRCNN", "OHEMROIHeads"), False),
    ],
)
@pytest.mark.parametrize("version", ["0.1", "now"])
def test_the_weights_are_left(trained, plain, pooling, version, run_program, tmp_path):
    """Version 0.1 did not note in a checkpoint what only training reads."""
    model, without = make_model(*trained, pooling), make_model(*plain, pooling)
    content = {"model": model.state_dict(), "optimizer": {"x": torch.zeros(1000)}, "iteration": 9}
    if version == "now":
        content["training_only"] = sorted(training_only_names(model))
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


def test_a_checkpoint_says_what_only_training_reads(run_program, tmp_path):
    weights = {name: torch.zeros(1) for name in ("score.weight", "score.window", "mimic_score.w")}
    torch.save({"model": weights, "training_only": ["score.window"]}, tmp_path / "a.pth")
    run_program(TOOL, tmp_path / "a.pth", tmp_path / "b.pth")
    kept = torch.load(tmp_path / "b.pth", weights_only=True)["model"]
    assert set(kept) == {"score.weight", "mimic_score.w"}


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
    assert "random" not in text  # weights, which are advised where a training begins
    assert not output.exists()


def test_a_checkpoint_is_not_replaced(run_program, tmp_path):
    torch.save({"model": {}, "iteration": 3}, tmp_path / "a.pth")
    code, text = run_program(TOOL, tmp_path / "a.pth", tmp_path / "." / "a.pth")
    assert code == 1 and "would replace the checkpoint" in text
    assert torch.load(tmp_path / "a.pth")["iteration"] == 3
