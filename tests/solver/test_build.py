import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from dcn_projects import add_dcn_config
from dcn_projects.solver import build_optimizer


def make(factors, **solver):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.SOLVER.update(dict(BASE_LR=0.1, WEIGHT_DECAY=0.01, LR_FACTORS=factors, **solver))
    model = nn.Sequential()
    model.add_module("conv_new", nn.Conv2d(2, 2, 1))
    model.add_module("conv_offset", nn.Conv2d(2, 2, 1))
    model.add_module("norm", nn.BatchNorm2d(2))
    optimizer = build_optimizer(cfg, model)
    names = {p: n for n, p in model.named_parameters()}
    return optimizer, {names[p]: g for g in optimizer.param_groups for p in g["params"]}


def test_factors():
    _, group = make([["offset.weight", 0.5], ["offset", 0.1], ["^conv_new", 3]])
    expected = {"conv_new": 0.3, "conv_offset": 0.01, "norm": 0.1}
    for name, g in group.items():
        lr = 0.05 if name == "conv_offset.weight" else expected[name.split(".")[0]]
        assert g["lr"] == pytest.approx(lr), name


def test_patterns_of_old_names(caplog):
    """Old configs name the offset layers of a block and the score maps of R-FCN as they were."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.SOLVER.update(
        dict(BASE_LR=0.1, LR_FACTORS=[["conv2_offset|offset_fc", 0.5], ["^score_maps", 3]])
    )
    model, block = nn.Sequential(), nn.Sequential()
    block.conv2 = nn.Sequential()
    block.conv2.conv_offset = nn.Linear(2, 2, bias=False)
    model.backbone, model.roi_heads = nn.Sequential(block), nn.Module()
    model.roi_heads.score_maps = nn.Linear(2, 2, bias=False)
    model.roi_heads.offset_fc = nn.Linear(2, 2, bias=False)  # has the name that it had
    with caplog.at_level("INFO"):
        optimizer = build_optimizer(cfg, model)
    rates = {round(g["lr"], 6): len(g["params"]) for g in optimizer.param_groups}
    assert rates == {0.05: 2, 0.3: 1}
    assert "'conv2_offset|offset_fc' matches old names" in caplog.text
    assert "backbone.0.conv2.conv_offset.weight now" in caplog.text


def test_weight_decay_is_that_of_detectron2():
    _, group = make([["conv_new", 3]], WEIGHT_DECAY_BIAS=0.0, WEIGHT_DECAY_NORM=0.001)
    assert group["conv_new.weight"]["weight_decay"] == 0.01
    assert group["conv_new.bias"]["weight_decay"] == 0.0
    assert group["norm.weight"]["weight_decay"] == 0.001


def test_factors_survive_the_schedule():
    optimizer, group = make([["conv_new", 3]])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    optimizer.step()
    scheduler.step()
    assert group["conv_new.weight"]["lr"] == pytest.approx(0.03)
    assert group["norm.weight"]["lr"] == pytest.approx(0.01)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="rpn"):
        make([["rpn", 2]])


@pytest.mark.parametrize("factors", [["conv_new"], [["("], 3], [["conv_new", "fast"]], [["(", 3]]])
def test_factors_that_are_no_pairs(factors):
    with pytest.raises(ValueError, match="SOLVER.LR_FACTORS is .*expected pairs"):
        make(factors)


def test_adamw_has_the_groups_of_sgd():
    options = dict(WEIGHT_DECAY_BIAS=0.0, WEIGHT_DECAY_NORM=0.001)
    _, sgd = make([["conv_new", 3]], **options)
    optimizer, adamw = make([["conv_new", 3]], OPTIMIZER="AdamW", **options)
    assert isinstance(optimizer, torch.optim.AdamW)
    for name in sgd:
        for key in ("lr", "weight_decay"):
            assert adamw[name][key] == sgd[name][key]


def test_gradient_clipping_is_that_of_detectron2():
    clip = CfgNode(dict(ENABLED=True, CLIP_TYPE="value", CLIP_VALUE=0.5, NORM_TYPE=2.0))
    for name in ("SGD", "AdamW"):
        optimizer, _ = make([], OPTIMIZER=name, CLIP_GRADIENTS=clip)
        params = [p for g in optimizer.param_groups for p in g["params"]]
        for p in params:
            p.grad = torch.full_like(p, 100.0)
        optimizer.step()
        assert all(p.grad.abs().max() <= 0.5 for p in params)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="Adagrad"):
        make([], OPTIMIZER="Adagrad")
