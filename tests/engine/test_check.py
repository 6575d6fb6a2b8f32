"""Weights whose preprocessing is known."""

import logging

import pytest
from detectron2.config import get_cfg

from dcn_projects.engine import check_preprocessing

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@pytest.mark.parametrize(
    "weights,options,named",
    [
        (MSRA, [], []),
        (MSRA, ["MODEL.PIXEL_STD", [57.4, 57.1, 58.4]], ["PIXEL_STD [1.0, 1.0, 1.0]", "57.4"]),
        (MSRA, ["MODEL.RESNETS.STRIDE_IN_1X1", False], ["STRIDE_IN_1X1 True", "is False"]),
        ("mine.pth", ["MODEL.RESNETS.STRIDE_IN_1X1", False], []),
    ],
)
def test_weights_of_other_pixels_or_strides(weights, options, named, caplog):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.WEIGHTS", weights, *options])
    with caplog.at_level(logging.WARNING):
        check_preprocessing(cfg)
    assert len(caplog.messages) == bool(named)
    assert all(name in caplog.text for name in named)
