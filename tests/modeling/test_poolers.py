"""
RoI poolers: rounding of the original, offsets from a layer of their own, levels of a pyramid, and
modulated pooling, whose offsets and masks come from two hidden layers and a third that starts at 0.
"""

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
from dcn_projects.modeling import DeformROIPooler, LevelPooler, ModulatedDeformROIPooler
from dcn_projects.modeling.poolers import (
    DeformROIPoolWithOffsets,
    OffsetMaskBranch,
    ROIPool,
    build_roi_pooler,
)
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


SCALES, FC = [1 / 4, 1 / 8], 5
# Small RoIs go to the first level, large ones to the second.
CANONICAL = dict(canonical_box_size=16, canonical_level=3)
SMALL, LARGE, OUTSIDE = [1.0, 2, 13, 14], [4.0, 4, 60.4, 55.5], [-8.0, 20, 70, 64]


def make_modulated_pooler(scales=SCALES, random=True, **kwargs):
    torch.manual_seed(0)
    pooler = ModulatedDeformROIPooler(SIZE, scales, C, fc_dim=FC, **CANONICAL, **kwargs)
    for p in pooler.parameters() if random else ():
        torch.nn.init.normal_(p)
    return pooler


def make_maps(dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(2, C, 16, 16, dtype=dtype), torch.randn(2, C, 8, 8, dtype=dtype)]


def pool_slowly(branch, x, roi, scale, sampling_ratio, gamma):
    """One RoI: pool, three matrix products, pool again, multiply by the mask."""

    def pool(offset, mask):
        return reference.deform_roi_pool(
            x.double(), roi[None].double(), offset, SIZE, scale, sampling_ratio, gamma, mask=mask
        )

    y = pool(None, None).flatten(1)
    for i in (0, 2, 4):
        y = y @ branch[i].weight.double().T + branch[i].bias.double()
        y = y if i == 4 else y.clamp(min=0)
    bins = SIZE * SIZE
    offset = torch.stack((y[0, :bins], y[0, bins : 2 * bins])).view(1, 2, SIZE, SIZE)
    return pool(offset, (1 / (1 + torch.exp(-y[:, 2 * bins :]))).view(1, 1, SIZE, SIZE))


@pytest.mark.parametrize("share_levels", [True, False])
@pytest.mark.parametrize("options", [dict(), dict(sampling_ratio=3, gamma=0.4)], ids=str)
def test_each_roi_equals_the_equation_of_modulated_pooling(share_levels, options):
    pooler = make_modulated_pooler(share_levels=share_levels, **options)
    assert len(pooler.offset_mask_fc) == (1 if share_levels else 2)
    x = make_maps()
    pooled = pooler(x, [Boxes(torch.tensor([LARGE, SMALL])), Boxes(torch.tensor([OUTSIDE]))])
    numbers = options.get("sampling_ratio", 2), options.get("gamma", 0.1)
    for row, (image, box, level) in enumerate([(0, LARGE, 1), (0, SMALL, 0), (1, OUTSIDE, 1)]):
        branch = pooler.offset_mask_fc[0 if share_levels else level]
        roi = torch.tensor([image, *box])
        expected = pool_slowly(branch, x[level], roi, SCALES[level], *numbers)
        assert_close(pooled[row : row + 1].double(), expected, rtol=1e-4, atol=1e-5)


def test_modulated_pooling_starts_as_half_of_plain_pooling():
    pooler, x = make_modulated_pooler([1 / 8], random=False), make_maps()[1:]
    roi = torch.tensor([[0, *LARGE]]).double()
    plain = reference.deform_roi_pool(x[0].double(), roi, None, SIZE, 1 / 8, 2)
    assert_close(pooler(x, [Boxes(torch.tensor([LARGE])), Boxes(torch.zeros(0, 4))]).double(),
                 plain / 2, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_layers_of_modulated_pooling():
    """The widths of the paper, for both heads; hidden layers start N(0, 0.01), the last at zero."""
    counts = {7: 14_046_355, 14: 53_033_548}
    with torch.device("meta"):
        for size, count in counts.items():
            branch = OffsetMaskBranch(256, (size, size), 1024)
            assert sum(p.numel() for p in branch.parameters()) == count
    torch.manual_seed(0)
    branch = OffsetMaskBranch(16, (7, 7), 64)
    for i in (0, 2):
        assert branch[i].weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not branch[i].bias.any()
    assert not branch[4].weight.any() and not branch[4].bias.any()


@pytest.mark.parametrize("boxes", [[], [SMALL]], ids=["no RoI", "none on the second level"])
def test_all_layers_of_modulated_pooling_take_part(boxes):
    """DistributedDataParallel wants a gradient of every parameter: zeros, but not None."""
    pooler, x = make_modulated_pooler(share_levels=False), make_maps()
    boxes = torch.tensor(boxes).reshape(-1, 4)
    pooled = pooler(x, [Boxes(boxes), Boxes(boxes[:0])])
    assert pooled.shape == (len(boxes), C, SIZE, SIZE)
    pooled.square().sum().backward()
    first, second = pooler.offset_mask_fc
    assert all(bool(p.grad.any()) == (len(boxes) > 0) for p in first.parameters())
    assert all(not p.grad.any() for p in second.parameters())


def test_gradients_of_modulated_pooling():
    pooler = make_modulated_pooler().double()
    boxes = [Boxes(torch.tensor([LARGE, SMALL])), Boxes(torch.tensor([OUTSIDE]))]
    x = [level.requires_grad_() for level in make_maps(torch.float64)]
    for p in pooler.parameters():
        torch.nn.init.normal_(p, std=0.3)
    inputs = (*x, *pooler.parameters())
    assert torch.autograd.gradcheck(lambda *x: pooler(x[:2], boxes), inputs, fast_mode=True)


def test_coordinates_of_modulated_pooling_are_exact_under_autocast():
    """The map has 16 bits, which could not hold the corners of this RoI."""
    torch.manual_seed(0)
    pooler = ModulatedDeformROIPooler(SIZE, [1 / 16], C, fc_dim=FC)
    torch.nn.init.constant_(pooler.offset_mask_fc[0][4].bias, 0.5)
    x = torch.randn(1, C, 50, 60).bfloat16()
    boxes = [Boxes(torch.tensor([[100.3, 90.7, 700.2, 650.1]]))]
    expected = pooler([x.float()], boxes)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler([x], boxes)
    assert pooled.dtype == torch.bfloat16
    assert_close(pooled.float(), expected, rtol=0.02, atol=0.002)


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
