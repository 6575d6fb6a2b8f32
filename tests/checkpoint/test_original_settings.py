import pytest
from detectron2.config import get_cfg

from dcn_projects.checkpoint.original_settings import (
    anchor_order,
    check_pixels,
    check_stride,
    differences,
    heads_settings,
    reorders_anchors,
)

MEAN, STD = (123.0, 116.0, 103.0), (58.0, 57.0, 56.0)  # RGB


@pytest.fixture
def cfg():
    return get_cfg()


def test_pixels(cfg):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.5, 116.5, 122.5], list(STD[::-1])
    check_pixels(cfg, MEAN, STD)
    cfg.MODEL.PIXEL_STD = list(STD)
    with pytest.raises(ValueError, match=r"PIXEL_STD is \[58.0, .*for \[56.0, 57.0, 58.0\]"):
        check_pixels(cfg, MEAN, STD)
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(
        ValueError, match=r"INPUT.FORMAT is RGB .*MEAN \[103.5, .*RGB \[123.0, .*BGR \[103"
    ):
        check_pixels(cfg, MEAN, STD)
    cfg.MODEL.PIXEL_MEAN = list(MEAN)
    check_pixels(cfg, MEAN, STD)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="INPUT.FORMAT is L"):
        check_pixels(cfg, MEAN, STD)


def test_stride(cfg):
    check_stride(cfg, in_1x1=True)
    with pytest.raises(ValueError, match="STRIDE_IN_1X1 is True, but the weights are for False"):
        check_stride(cfg, in_1x1=False)


@pytest.mark.parametrize("name", ["PyFasterRCNNAnchorGenerator", "MXNetAnchorGenerator"])
def test_anchor_order(name, cfg):
    """
    Of two sizes and three ratios, ratio first: small and large of 0.5, of 1, of 2. The generator
    has a second, older name.
    """
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    assert anchor_order(cfg, ratio_first=False) == [0, 1, 2, 3, 4, 5]
    assert anchor_order(cfg, ratio_first=True) == [0, 2, 4, 1, 3, 5]
    cfg.MODEL.ANCHOR_GENERATOR.NAME = name
    assert not differences(cfg, {"MODEL.ANCHOR_GENERATOR.NAME": "PyFasterRCNNAnchorGenerator"})
    assert anchor_order(cfg, ratio_first=True) == [0, 1, 2, 3, 4, 5]
    assert anchor_order(cfg, ratio_first=False) == [0, 3, 1, 4, 2, 5]


def test_settings_that_reorder_anchors(cfg):
    """A generator with ratios first does where there are several sizes; an offset does not."""
    mxnet = {"MODEL.ANCHOR_GENERATOR.NAME": "PyFasterRCNNAnchorGenerator"}
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.freeze()
    assert reorders_anchors(cfg, mxnet | {"MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717]})
    assert not reorders_anchors(cfg, {"MODEL.ANCHOR_GENERATOR.OFFSET": 0.5})
    cfg.defrost()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    assert not reorders_anchors(cfg, mxnet)


def test_settings_of_the_heads(cfg):
    """Those that a model has no use for are not named."""
    legacy = {
        "MODEL.ANCHOR_GENERATOR.NAME": "PyFasterRCNNAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    }
    sampling = "MODEL.{}.POOLER_SAMPLING_RATIO"
    box, mask = {sampling.format("ROI_BOX_HEAD"): 2}, {sampling.format("ROI_MASK_HEAD"): 2}
    assert differences(cfg, heads_settings(cfg, "ROIAlignV2", False)) == box
    assert differences(cfg, heads_settings(cfg, "ROIAlignV2", True)) == legacy | box
    cfg.MODEL.MASK_ON = True
    assert differences(cfg, heads_settings(cfg, "ROIAlignV2", False)) == box  # Res5ROIHeads
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    assert differences(cfg, heads_settings(cfg, "ROIAlignV2", False)) == box | mask
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "DeformROIPool"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (20.0, 20.0, 10.0, 10.0)
    assert differences(cfg, heads_settings(cfg, "ROIAlign", False)) == mask | {
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    }
