"""RoI pooling of DCNv2: offsets and mask from two layers of its own and a third that is zero."""

import pytest
import torch
from detectron2.structures import Boxes
from torch.testing import assert_close

from dcn_projects.modeling import ModulatedDeformROIPooler
from dcn_projects.modeling.poolers import OffsetMaskBranch
from tests.layers import reference

C, SIZE, FC = 3, 2, 5
SCALES = [1 / 4, 1 / 8]
# Small RoIs go to the first level, large ones to the second.
LEVELS = dict(canonical_box_size=16, canonical_level=3)
SMALL, LARGE, OUTSIDE = [1.0, 2, 13, 14], [4.0, 4, 60.4, 55.5], [-8.0, 20, 70, 64]


def make_pooler(scales=SCALES, random=True, **kwargs):
    torch.manual_seed(0)
    pooler = ModulatedDeformROIPooler(SIZE, scales, C, fc_dim=FC, **LEVELS, **kwargs)
    for p in pooler.parameters() if random else ():
        torch.nn.init.normal_(p)
    return pooler


def make_maps(dtype=torch.float32):
    torch.manual_seed(1)
    return [torch.randn(2, C, 16, 16, dtype=dtype), torch.randn(2, C, 8, 8, dtype=dtype)]


def slowly(branch, x, roi, scale, sampling_ratio, gamma):
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
def test_each_roi_equals_the_equation(share_levels, options):
    pooler = make_pooler(share_levels=share_levels, **options)
    assert len(pooler.offset_mask_fc) == (1 if share_levels else 2)
    x = make_maps()
    pooled = pooler(x, [Boxes(torch.tensor([LARGE, SMALL])), Boxes(torch.tensor([OUTSIDE]))])
    numbers = options.get("sampling_ratio", 2), options.get("gamma", 0.1)
    for row, (image, box, level) in enumerate([(0, LARGE, 1), (0, SMALL, 0), (1, OUTSIDE, 1)]):
        branch = pooler.offset_mask_fc[0 if share_levels else level]
        roi = torch.tensor([image, *box])
        expected = slowly(branch, x[level], roi, SCALES[level], *numbers)
        assert_close(pooled[row : row + 1].double(), expected, rtol=1e-4, atol=1e-5)


def test_starts_as_half_of_plain_pooling():
    pooler, x = make_pooler([1 / 8], random=False), make_maps()[1:]
    roi = torch.tensor([[0, *LARGE]]).double()
    plain = reference.deform_roi_pool(x[0].double(), roi, None, SIZE, 1 / 8, 2)
    assert_close(pooler(x, [Boxes(torch.tensor([LARGE])), Boxes(torch.zeros(0, 4))]).double(),
                 plain / 2, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_layers():
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
def test_all_layers_take_part(boxes):
    """DistributedDataParallel wants a gradient of every parameter: zeros, but not None."""
    pooler, x = make_pooler(share_levels=False), make_maps()
    boxes = torch.tensor(boxes).reshape(-1, 4)
    pooled = pooler(x, [Boxes(boxes), Boxes(boxes[:0])])
    assert pooled.shape == (len(boxes), C, SIZE, SIZE)
    pooled.square().sum().backward()
    first, second = pooler.offset_mask_fc
    assert all(bool(p.grad.any()) == (len(boxes) > 0) for p in first.parameters())
    assert all(not p.grad.any() for p in second.parameters())


def test_gradients():
    pooler = make_pooler().double()
    boxes = [Boxes(torch.tensor([LARGE, SMALL])), Boxes(torch.tensor([OUTSIDE]))]
    x = [level.requires_grad_() for level in make_maps(torch.float64)]
    for p in pooler.parameters():
        torch.nn.init.normal_(p, std=0.3)
    inputs = (*x, *pooler.parameters())
    assert torch.autograd.gradcheck(lambda *x: pooler(x[:2], boxes), inputs, fast_mode=True)


def test_coordinates_are_exact_under_autocast():
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
