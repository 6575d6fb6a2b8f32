import numpy as np
import pytest
import torch
from torch import nn

from dcn_projects.layers import DeformConv, DeformROIPool, deform_conv, deformable
from dcn_projects.vis import (
    draw_deformed_bins,
    draw_sampling_locations,
    record_offsets,
    roi_bins,
    sampling_locations,
)
from tests.layers import reference


class Stack(nn.Module):
    """Two deformable convolutions with given offsets, and a RoI pooling."""

    def __init__(self, offsets, **geometry):
        super().__init__()
        self.offsets = offsets
        self.first = DeformConv(1, 1, 3, **geometry)
        self.second = DeformConv(1, 2, 3, padding=1)
        self.pool = DeformROIPool(2, spatial_scale=0.5, group_size=1)

    def forward(self, x, rois, trans):
        x = self.second(self.first(x, self.offsets[0]), self.offsets[1])
        return self.pool(x, rois, trans)


def run(stack, size=9):
    rois = torch.tensor([[0.0, 2.4, 4, 12, 8.5], [0.0, 0, 0, 1, 1]])
    trans = torch.zeros(2, 4, 2, 2)
    trans[0, 2, 0, 1], trans[0, 3, 0, 1] = 1.0, -2.0  # class 1, upper right bin
    with record_offsets(stack) as recorded:
        stack(torch.zeros(1, 1, size, size), rois, trans)
    assert all(not m._forward_pre_hooks for m in stack.modules())
    return recorded


@pytest.mark.parametrize(
    "geometry", [dict(padding=1), dict(padding=2, dilation=2), dict(stride=2, padding=1)], ids=str
)
def test_locations_are_those_that_the_operator_reads(geometry):
    """The output cell changes exactly when a pixel next to a sampling location changes."""
    torch.manual_seed(0)
    size = 5 if "stride" in geometry else 9
    offsets = [torch.rand(1, 18, size, size) * 4 - 2, torch.zeros(1, 18, size, size)]
    stack = Stack(offsets, **geometry)
    entry = run(stack)["first"]
    points = sampling_locations(entry, (2, 3))
    assert len(points) == 9

    touched = np.zeros((9, 9), dtype=bool)
    for y, x in points:
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= i < 9 and 0 <= j < 9:
                    touched[i, j] = True
    image = torch.zeros(1, 1, 9, 9, requires_grad=True)
    out = deform_conv(image, offsets[0], torch.ones(1, 1, 3, 3), **geometry)
    out[0, 0, 2, 3].backward()
    np.testing.assert_array_equal(image.grad[0, 0].numpy() != 0, touched)


def test_stacked_layers():
    """Without offsets two 3x3 layers reach 5x5 cells; an offset of the second moves all of them."""
    offsets = [torch.zeros(1, 18, 9, 9), torch.zeros(1, 18, 9, 9)]
    recorded = run(Stack(offsets, padding=1))
    layers = recorded["first"] + recorded["second"]
    points = sampling_locations(layers, (4, 4))
    assert len(points) == 81 and len(np.unique(points, axis=0)) == 25
    assert points.min() == 2 and points.max() == 6

    layers[1].offset[0, ::2] = 2.0  # all taps two rows down
    np.testing.assert_array_equal(sampling_locations(layers, (4, 4)), points + (2, 0))
    assert len(sampling_locations(layers, (8, 4))) < 81  # some start from outside the map


def test_roi_bins():
    entry = run(Stack([torch.zeros(1, 18, 9, 9)] * 2, padding=1))["pool"][0]
    # RoI (2, 4, 12, 9) after rounding: bins of 5 x 2.5; gamma 0.1 of 10 x 5 pixels per unit.
    plain = [[2, 4, 7, 6.5], [7, 4, 12, 6.5], [2, 6.5, 7, 9], [7, 6.5, 12, 9]]
    np.testing.assert_allclose(roi_bins(entry, 0, 0), plain)
    moved = np.array(plain)
    moved[1] += (1, -1, 1, -1)
    np.testing.assert_allclose(roi_bins(entry, 0, 1), moved)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("corners", [(-0.5, 6.5), (-2.5, -1.5), (0.5, 0.5), (-3.4, 9.6), (7, 2)])
def test_roi_bins_are_those_of_the_operator(corners, axis):
    """Corners on halves are rounded away from zero; a RoI is a tenth of a cell at least."""
    roi = [0.0, 1, 1, 9, 9]
    roi[1 + axis], roi[3 + axis] = corners
    pool, offset = DeformROIPool(2, spatial_scale=0.5), torch.zeros(1, 2, 2, 2)
    offset[0, :, 1, 1] = 1.0
    with record_offsets(pool) as recorded:
        pool(torch.zeros(1, 1, 9, 9), torch.tensor([roi]), offset)
    (bins,) = (roi_bins(entry, 0, 0) for entry in recorded[""])
    start, length = reference._roi_axis(*corners, 0.5, 0.5)  # in cells, of their centres
    start, length = (start + 0.5) / 0.5, length / 0.5
    expected = [start + length * k for k in (0, 0.5, 0.5 + 0.1, 1 + 0.1)]
    actual = [*bins[0, axis::2], *bins[3, axis::2]]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_pictures():
    def color(drawn, y, x):
        return (drawn[y, x] > 200).tolist()  # anti-aliased

    red, green, blue = [False, False, True], [False, True, False], [True, False, False]
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    drawn = draw_sampling_locations(picture, np.array([[1.0, 2.0]]), (3, 4), stride=4, scale=2)
    assert color(drawn, 12, 20) == red and color(drawn, 28, 36) == green
    entry = run(Stack([torch.zeros(1, 18, 9, 9)] * 2, padding=1))["pool"][0]
    drawn = draw_deformed_bins(picture, entry, 0, 0, scale=2)
    assert color(drawn, 13, 10) == red  # between two bins
    assert color(drawn, 8, 10) == blue  # the RoI is drawn over them
    assert not picture.any()


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_of_converted_convolutions(modulated):
    torch.manual_seed(0)
    conv = deformable(nn.Conv2d(2, 4, 3, padding=1), modulated=modulated, groups=2)
    nn.init.normal_(conv.conv_offset.weight)
    x = torch.randn(1, 2, 5, 6)
    with record_offsets(nn.Sequential(conv)) as recorded:
        conv(x)
    (entry,) = recorded["0"]
    assert entry.layer is conv
    np.testing.assert_array_equal(entry.offset, conv.conv_offset(x)[:, :36].detach())
