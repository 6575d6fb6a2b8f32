"""RoI poolers: rounding of the original, offsets from a layer of their own, levels of a pyramid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch.testing import assert_close

from dcn_projects import add_dcn_config
from dcn_projects.modeling import DeformROIPooler, LevelPooler
from dcn_projects.modeling.poolers import DeformROIPoolWithOffsets, ROIPool, build_roi_pooler
from tests.layers import reference

ARCHIVE = np.load(Path(__file__).parents[1] / "goldens/mxnet_ops/ROIPooling.npz")
CASES = json.loads(str(ARCHIVE["index"]))
C, SIZE = 3, 2


@pytest.mark.parametrize("case", CASES)
def test_maximum_equals_mxnet(case):
    golden = {
        k: torch.from_numpy(ARCHIVE[f"{case}/{k}"])
        for k in ("data", "rois", "head_grad", "out", "grad_data")
    }
    attrs = CASES[case]["attrs"]
    pool = ROIPool(tuple(attrs["pooled_size"]), attrs["spatial_scale"])
    input = golden["data"].requires_grad_()
    out = pool(input, golden["rois"] + torch.tensor([0, 0, 0, 1, 1]))  # to exclusive corners
    assert_close(out, golden["out"], rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out, input, golden["head_grad"])
    assert_close(grad, golden["grad_data"], rtol=0, atol=1e-5)
    half = pool(golden["data"].bfloat16(), golden["rois"] + torch.tensor([0, 0, 0, 1, 1]))
    assert_close(half, golden["out"].bfloat16(), rtol=0, atol=0)


@pytest.fixture
def boxes():
    """Two images; the last box of the first leaves it."""
    return [
        Boxes(torch.tensor([[3.2, 5.5, 40.4, 60.1], [10.0, 10, 10, 10], [50, 30, 140, 100]])),
        Boxes(torch.tensor([[-8.0, 20, 70, 64]])),
    ]


def rois_of(boxes):
    return torch.cat(
        [torch.cat((torch.full((len(b), 1), i), b.tensor), 1) for i, b in enumerate(boxes)]
    ).double()


def random_offsets(pooler):
    torch.manual_seed(1)
    for level in pooler.level_poolers:
        torch.nn.init.normal_(level.offset_fc.weight)
        torch.nn.init.normal_(level.offset_fc.bias)


def test_offsets_start_at_zero(boxes):
    torch.manual_seed(0)
    x = torch.randn(2, C, 6, 8)
    pooler = DeformROIPooler(SIZE, [1 / 16], C)
    assert [n for n, _ in pooler.named_parameters()] == [
        "level_poolers.0.offset_fc.weight",
        "level_poolers.0.offset_fc.bias",
    ]
    expected = reference.deform_roi_pool(x.double(), rois_of(boxes), None, SIZE, 1 / 16)
    assert_close(pooler([x], boxes).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio, gamma", [(4, 0.1), (2, 0.5)])
def test_offsets_move_the_bins(boxes, sampling_ratio, gamma):
    torch.manual_seed(0)
    x = torch.randn(2, C, 6, 8)
    pooler = DeformROIPooler(SIZE, [1 / 16], C, sampling_ratio, gamma)
    random_offsets(pooler)
    rois, fc = rois_of(boxes), pooler.level_poolers[0].offset_fc

    def pool(offset):
        return reference.deform_roi_pool(
            x.double(), rois, offset, SIZE, 1 / 16, sampling_ratio, gamma
        )

    offset = pool(None).flatten(1) @ fc.weight.double().T + fc.bias.double()
    expected = pool(offset.view(-1, 2, SIZE, SIZE))
    assert (expected - pool(None)).abs().max() > 0.1
    assert_close(pooler([x], boxes).double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients(boxes):
    torch.manual_seed(0)
    pool = DeformROIPoolWithOffsets(SIZE, 1 / 16, C, sampling_ratio=2).double()
    torch.nn.init.normal_(pool.offset_fc.weight)
    x = torch.randn(2, C, 6, 8, dtype=torch.float64, requires_grad=True)
    rois = rois_of(boxes)
    assert torch.autograd.gradcheck(lambda x, *_: pool(x, rois), (x, *pool.parameters()))


def test_coordinates_are_exact_under_autocast():
    """The map has 16 bits, which could not hold the corners of this RoI."""
    torch.manual_seed(0)
    x = torch.randn(1, C, 50, 60).bfloat16()
    pooler = DeformROIPooler(SIZE, [1 / 16], C)
    torch.nn.init.constant_(pooler.level_poolers[0].offset_fc.bias, 0.5)
    boxes = [Boxes(torch.tensor([[100.3, 90.7, 700.2, 650.1]]))]
    expected = pooler([x.float()], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler([x], boxes)
    assert_close(pooled, expected.bfloat16(), rtol=0, atol=0)


def make_max_pooler(output_size, scales):
    return LevelPooler(output_size, scales, [ROIPool(output_size, scale) for scale in scales])


# Side of a square RoI in pixels -> level of p2..p5, from floor(4 + log2(side / 224)).
LEVELS = {1: 0, 111: 0, 113: 1, 223: 1, 225: 2, 447: 2, 449: 3, 2000: 3}


@pytest.mark.parametrize("kind", [make_max_pooler, DeformROIPooler])
def test_levels(kind):
    """Each RoI is pooled from the level of its size, by the layer of that level, in its place."""
    sides = list(LEVELS)
    boxes = [
        Boxes(torch.tensor([[0.0, 0, s, s] for s in part])) for part in (sides[::2], sides[1::2])
    ]
    levels = [LEVELS[s] for s in sides[::2] + sides[1::2]]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    x = [torch.full((2, C, 8 - i, 9), float(i)) for i in range(4)]
    channels = (C,) if kind is DeformROIPooler else ()
    pooled = kind(SIZE, scales, *channels)(x, boxes)
    assert pooled.shape == (8, C, SIZE, SIZE)
    assert_close(pooled[:, :, 0, 0], torch.tensor(levels).float()[:, None].expand(-1, C))


def test_each_level_has_an_offset_layer():
    """Also a level without RoIs takes part in the gradient: with zeros, but not with None."""
    pooler = DeformROIPooler(SIZE, [1 / 4, 1 / 8], C, canonical_box_size=16, canonical_level=3)
    random_offsets(pooler)
    x = [torch.randn(1, C, 16, 16), torch.randn(1, C, 8, 8)]
    small, large = [1.0, 2, 13, 14], [4.0, 4, 60, 56]
    together = pooler(x, [Boxes(torch.tensor([large, small]))])
    for row, (box, level) in enumerate([(large, 1), (small, 0)]):
        rois = torch.tensor([[0, *box]])
        assert_close(together[row : row + 1], pooler.level_poolers[level](x[level], rois))
    pooler(x, [Boxes(torch.tensor([small]))]).square().sum().backward()
    used, unused = (level.offset_fc.weight.grad for level in pooler.level_poolers)
    assert used.abs().max() > 0 and unused is not None and not unused.any()


@pytest.mark.parametrize("kind", [make_max_pooler, DeformROIPooler])
@pytest.mark.parametrize("scales", [[1 / 16], [1 / 8, 1 / 16]])
def test_no_rois(kind, scales):
    pooler = kind(SIZE, scales, *((C,) if kind is DeformROIPooler else ()))
    x = [torch.randn(2, C, 6, 8, requires_grad=True) for _ in scales]
    pooled = pooler(x, [Boxes(torch.zeros(0, 4))] * 2)
    assert pooled.shape == (0, C, SIZE, SIZE)
    pooled.sum().backward()
    assert all(not p.grad.any() for p in (*x, *pooler.parameters()))


WRONG = {
    "POOLER_TYPE": "ROIMax",
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_RESOLUTION": 0,
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_values_are_named(key):
    cfg = get_cfg()
    add_dcn_config(cfg)
    keys = cfg.MODEL.ROI_BOX_HEAD
    keys.POOLER_TYPE, keys.POOLER_SAMPLING_RATIO = "DeformROIPool", 4
    shapes = [ShapeSpec(channels=C, stride=16)]
    assert isinstance(build_roi_pooler(cfg, "ROI_BOX_HEAD", shapes), DeformROIPooler)
    keys[key] = WRONG[key]
    with pytest.raises(ValueError, match=f"MODEL.ROI_BOX_HEAD.{key} is {WRONG[key]}"):
        build_roi_pooler(cfg, "ROI_BOX_HEAD", shapes)
