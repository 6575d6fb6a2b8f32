"""Configs that fit neither their weights nor their data."""

import logging

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog

from dcn_projects import add_dcn_config
from dcn_projects.engine import check_classes, check_preprocessing

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


@pytest.mark.parametrize(
    "model, head", [("RetinaNet", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")]
)
def test_other_classes(model, head, request):
    MetadataCatalog.get("three").thing_classes = ["a", "b", "c"]
    request.addfinalizer(lambda: MetadataCatalog.remove("three"))
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = model
    with pytest.raises(ValueError, match=f"{head}.NUM_CLASSES is 80, but data set three has 3"):
        check_classes(cfg, ["three"])
    cfg.MODEL[head].NUM_CLASSES = 3
    check_classes(cfg, ["three"])
