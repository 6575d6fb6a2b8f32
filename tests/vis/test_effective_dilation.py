import json

import numpy as np
import pytest
import torch

from dcn_projects.layers import DeformConv
from dcn_projects.vis import (
    DilationStatistics,
    draw_heat_map,
    effective_dilation,
    object_sizes,
    offset_magnitude,
    record_offsets,
)


def recorded(offset, **geometry):
    """The offsets of a convolution as they are recorded, from a function of the tap (i, j)."""
    conv = DeformConv(2, 2, 3, deformable_groups=2, **geometry)
    taps = [offset(i, j) for i in range(3) for j in range(3)]
    values = torch.tensor(taps, dtype=torch.float32).reshape(1, 18, 1, 1)
    values = torch.cat((values, torch.zeros(1, 18, 1, 1)), dim=1).expand(1, 36, 4, 5)
    with record_offsets(conv) as offsets:
        conv(torch.zeros(1, 2, 4, 5), values)
    return offsets[""][0]


# offset (y, x) of tap (i, j) -> effective dilation of a filter with dilation 2
CASES = {
    "none": (lambda i, j: (0, 0), 2),
    "the same for all": (lambda i, j: (1.5, -0.7), 2),
    "spread": (lambda i, j: (0.5 * i, 0.5 * j), 2.5),
    "all in one point": (lambda i, j: (-2 * i, -2 * j), 0),
    "only rows are spread": (lambda i, j: (3 * i, 0), (5 + 2) / 2),
    # The middle moves by 2 to the side, onto one neighbour: of 12 distances one is 0, one 4, and
    # two are the diagonals of a 2 x 2 square.
    "the middle moves": (
        lambda i, j: (0, 2 * (i == j == 1)), (8 * 2 + 0 + 4 + 2 * 8**0.5) / 12
    ),
    "rotated by a right angle": (lambda i, j: (2 * (j - 1) - 2 * (i - 1), -2 * (i + j - 2)), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_effective_dilation(case):
    offset, expected = CASES[case]
    dilation = effective_dilation(recorded(offset, padding=2, dilation=2))
    assert dilation.shape == (1, 2, 4, 5)
    np.testing.assert_allclose(dilation[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(dilation[0, 1], 2)  # the other group has no offsets


def test_magnitude():
    values = offset_magnitude(recorded(lambda i, j: (3, 4) if i == 0 else (0, 0), padding=1))
    np.testing.assert_allclose(values, np.full((1, 4, 5), 5 * 3 / 18))


def test_sizes():
    """An image of 40 x 60 in a map of 8 x 8 cells of 8 pixels."""
    boxes = np.array([[0, 0, 40, 40], [8, 8, 16, 24], [36, 30, 60, 40.0]])
    areas = np.array([40 * 40, 8 * 16, 100 * 100.0])  # the last: of an image that was shrunk
    sizes = object_sizes((8, 8), 8, (40, 60), boxes, areas)
    expected = np.full((8, 8), 3)
    expected[:5, :5] = 1
    expected[4, 5:7] = 2  # centre 36, 44 and 52; 36 is on the smaller object
    expected[1:3, 1] = 0
    expected[5:] = -1
    expected[:, 7] = -1  # centre 60
    np.testing.assert_array_equal(sizes, expected)


def test_limits_of_sizes():
    boxes = np.tile([0.0, 0, 8, 8], (1, 1))
    for area, size in ((1023, 0), (1024, 1), (9215, 1), (9216, 2)):
        assert object_sizes((1, 1), 8, (8, 8), boxes, np.array([area]))[0, 0] == size


def test_statistics():
    rng = np.random.default_rng(0)
    statistics = DilationStatistics()
    seen = {k: [] for k in range(4)}
    for _ in range(3):
        dilation, sizes = rng.normal(5, 1, (2, 6, 7)), rng.integers(-1, 3, (6, 7))
        statistics.add("res5", dilation, sizes)
        for k in seen:
            seen[k].append(dilation[:, sizes == k].ravel())
    results = statistics.results()["res5"]
    for k, size in enumerate(("small", "medium", "large")):
        values = np.concatenate(seen[k])
        assert results[size]["count"] == len(values)
        assert results[size]["mean"] == pytest.approx(values.mean())
        assert results[size]["std"] == pytest.approx(values.std())
    assert results["background"] == {"mean": None, "std": None, "count": 0}
    json.dumps(results, allow_nan=False)
    row = statistics.table().splitlines()[-1]
    assert row.count("±") == 3 and f"{results['large']['mean']:.2f}" in row


def test_heat_map():
    picture = np.zeros((30, 40, 3), dtype=np.uint8)
    values = np.zeros((2, 2))
    values[1, 0] = 2
    drawn = draw_heat_map(picture, values, stride=16, title="res5")[-30:]
    blue, red = drawn[0, 0], drawn[20, 3]
    assert blue[0] > 50 and blue[2] == 0 and red[2] > 50 and red[0] == 0
    assert (drawn[:, 16:] == blue).all() and (drawn[:16] == blue).all()
    assert (drawn[16:, :16] == red).all() and not picture.any()
