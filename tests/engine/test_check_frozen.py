"""Frozen layers with random numbers are refused, whichever key froze them, and nothing else is."""

import pickle

import pytest
import torch

from dcn_projects.checkpoint import load_to_start
from dcn_projects.engine import read_config
from dcn_projects.engine.check_frozen import check_frozen
from dcn_projects.modeling import build_model
from tests.yaml_files import LEAVES

CONFIG = "Dynamic-RCNN/faster_rcnn_R_14_FPN_digits.yaml"
FROZEN_NORMS = ["MODEL.RESNETS.NORM", "FrozenBN"]
FREEZE_2 = ["MODEL.BACKBONE.FREEZE_AT", "2"]


def build(*opts, config=CONFIG, device="meta"):
    cfg = read_config(config, [f"MODEL.DEVICE={device}", *opts])
    with torch.device(device):
        return cfg, build_model(cfg)


def start(cfg, model):
    at_random = load_to_start(model, cfg.MODEL.WEIGHTS)
    check_frozen(cfg, model, at_random)
    return at_random


TRAIN_NORMS = "MODEL.RESNETS.NORM BN (or GN, SyncBN)"
TRAIN_ALL = "MODEL.BACKBONE.FREEZE_AT 0"


@pytest.mark.parametrize(
    "opts, named, advice",
    [
        (FROZEN_NORMS, "68 .*: backbone.bottom_up.stem.conv1.norm.weight", TRAIN_NORMS),
        (FREEZE_2, "25 .*: backbone.bottom_up.stem.conv1.weight", TRAIN_ALL),
        ([*FROZEN_NORMS, *FREEZE_2], "73 ", f"{TRAIN_NORMS} and {TRAIN_ALL}"),
        (
            ["MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "1"],
            "3 .*: backbone.bottom_up.stem.conv1.weight",
            TRAIN_ALL,
        ),
        (
            ["MODEL.FPN.NORM", "FrozenBN"],
            "32 .*: backbone.fpn_lateral2.norm.weight",
            "MODEL.FPN.NORM BN (or GN, SyncBN)",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "ProposalNetwork", *FREEZE_2],
            "25 .*: backbone.bottom_up.stem",
            TRAIN_ALL,
        ),
    ],
    ids=str,
)
def test_random_weights_are_not_frozen(opts, named, advice):
    cfg, model = build(*opts)
    message = rf"^MODEL.WEIGHTS is '' and lacks {named}"
    with pytest.raises(ValueError, match=message) as error:
        start(cfg, model)
    said = str(error.value)
    assert f", or set {advice} to train them" in said and "\n" not in said
    # Who follows it can start.
    keys = said.split(", or set ")[1].removesuffix(" to train them").split(" and ")
    start(*build(*opts, *(word for key in keys for word in key.split(" (")[0].split())))


@pytest.mark.parametrize("leaf", [x for x in LEAVES if read_config(str(x)).MODEL.WEIGHTS == ""])
def test_configs_that_start_from_random_weights(leaf):
    assert start(*build(config=str(leaf)))


def save(model, path, left_out=()):
    state = {n: v for n, v in model.state_dict().items() if not n.endswith(tuple(left_out))}
    torch.save({"model": state}, path)


def test_frozen_layers_that_a_checkpoint_has_not(tmp_path):
    path = tmp_path / "a.pth"
    cfg, model = build(*FROZEN_NORMS, *FREEZE_2, f"MODEL.WEIGHTS={path}", device="cpu")
    save(model, path, ["fc1.weight", "fc1.bias"])
    assert start(cfg, model) == {"roi_heads.box_head.fc1.weight", "roi_heads.box_head.fc1.bias"}
    save(model, path, ["stem.conv1.weight"])
    with pytest.raises(ValueError, match=f"^{path} lacks 1 parameters .*: backbone.*stem.conv1.we"):
        start(cfg, model)


def test_frozen_norms_do_not_take_the_numbers_of_other_norms(tmp_path):
    """detectron2 gives a frozen norm without mean and variance 0 and 1, and says nothing."""
    path = tmp_path / "a.pth"
    save(build("MODEL.RESNETS.NORM", "GN", device="cpu")[1], path)
    cfg, model = build(*FROZEN_NORMS, f"MODEL.WEIGHTS={path}", device="cpu")
    with pytest.raises(ValueError, match="lacks 34 .*: backbone.*stem.conv1.norm.running_mean"):
        start(cfg, model)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_norms_of_caffe2(norm, tmp_path):
    """Of ImageNet: a scale and a shift, which is all of a BatchNorm, but not of a GroupNorm."""
    path = tmp_path / "a.pkl"
    cfg, model = build(*FROZEN_NORMS, *FREEZE_2, f"MODEL.WEIGHTS={path}", device="cpu")
    branches = {
        "conv1": "branch2a",
        "conv2": "branch2b",
        "conv3": "branch2c",
        "shortcut": "branch1",
    }
    arrays = {}
    for name, value in model.backbone.bottom_up.state_dict().items():
        stage, _, *rest = name.split(".")
        if stage == "stem":
            caffe2 = (
                "conv1_" if len(rest) == 1 else f"{'res_' if norm == 'bn' else ''}conv1_{norm}_"
            )
        else:
            layer, *rest = rest
            caffe2 = f"{stage}_0_{branches[layer]}_" + ("" if len(rest) == 1 else f"{norm}_")
        kind = {"weight": "w" if len(rest) == 1 else "s", "bias": "b"}.get(rest[-1])
        if kind:
            arrays[caffe2 + kind] = value.numpy()
    path.write_bytes(pickle.dumps(arrays | {"fc1000_w": torch.zeros(1000, 256).numpy()}))
    if norm == "bn":
        assert all(not name.startswith("backbone.bottom_up") for name in start(cfg, model))
    else:
        with pytest.raises(ValueError, match="lacks .*norm.running_mean"):
            start(cfg, model)
