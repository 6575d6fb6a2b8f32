import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from dcn_projects.engine import OffsetStatistics
from dcn_projects.layers import (
    DeformConv,
    DeformROIPool,
    ModulatedDeformConv,
    deform_conv,
    deform_roi_pool,
    deformable,
)
from tests.layers import reference
from tests.layers.rois import ROIS, SCALE


def measure(model, calls, period=1, iterations=1):
    """Runs a hook around `calls`, of model; returns iteration -> name -> value."""
    hook, found = OffsetStatistics(period), {}
    with EventStorage() as storage:
        for i in range(iterations):
            hook.trainer = SimpleNamespace(iter=i, model=model, storage=storage)
            storage.iter = i
            hook.before_step()
            calls(model)
            hook.after_step()
            latest = storage.latest().items()
            found[i] = {name: value for name, (value, at) in latest if at == i}
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return found


@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=(1, 3), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
        dict(kernel_size=3, padding=1, deformable_groups=2),
    ],
    ids=str,
)
def test_of_a_convolution(geometry, legacy_border):
    torch.manual_seed(0)
    layer = DeformConv(2, 2, **geometry, legacy_border=legacy_border)
    kh, kw = layer.kernel_size
    K, G = kh * kw, layer.deformable_groups
    x = torch.ones(2, 2, 5, 7)
    Ho, Wo = nn.functional.conv2d(
        x, torch.zeros(1, 2, kh, kw), None, layer.stride, layer.padding, layer.dilation
    ).shape[2:]
    offset = 2 * torch.randn(2, 2 * G * K, Ho, Wo)
    statistics = measure(layer, lambda layer: layer(x, offset))[0]
    lengths = offset.view(2, G, K, 2, Ho, Wo).double().pow(2).sum(3).sqrt()
    # A point that reads nothing gives 0 on a map of ones. Output k reads with tap k alone.
    taps = torch.eye(K).view(K, 1, kh, kw)
    read = [
        deform_conv(
            x[:, :1], offset[:, 2 * K * g : 2 * K * (g + 1)], taps, None,
            layer.stride, layer.padding, layer.dilation, legacy_border=legacy_border,
        )
        for g in range(G)
    ]  # fmt: skip
    assert statistics == {
        "offsets//mean": pytest.approx(lengths.mean().item(), rel=1e-5),
        "offsets//max": pytest.approx(lengths.max().item(), rel=1e-5),
        "offsets//outside": pytest.approx((torch.cat(read) == 0).double().mean().item()),
    }


def test_of_a_convolution_by_hand():
    """Offsets of 3 rows and 4 columns on a map of 5 x 7: points of 2 x 3 cells remain on it."""
    offset = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 5, 7)
    model = nn.ModuleDict({"res5": ModulatedDeformConv(1, 1, 1)})
    calls = [offset, torch.zeros(1, 2, 5, 7)]

    def run(model):
        for offset in calls:
            model["res5"](torch.zeros(1, 1, 5, 7), offset, mask=torch.ones(1, 1, 5, 7))

    expected = {"mean": 2.5, "max": 5.0, "outside": pytest.approx(1 - (6 + 35) / 70)}
    assert measure(model, run)[0] == {f"offsets/res5/{k}": v for k, v in expected.items()}
    calls.reverse()
    assert measure(model, run)[0] == {f"offsets/res5/{k}": v for k, v in expected.items()}


def test_of_a_converted_convolution():
    """Without offsets the taps on the padding read nothing. Masks are no offsets."""
    model = nn.Sequential(deformable(nn.Conv2d(4, 4, 3, padding=1), modulated=True, groups=2))
    nn.init.constant_(model[0].conv_offset.bias[36:], 9.0)
    statistics = measure(model, lambda model: model(torch.zeros(2, 4, 5, 7)))[0]
    outside = 1 - (3 * 5 - 2) * (3 * 7 - 2) / (9 * 5 * 7)
    assert statistics == {
        "offsets/0/mean": 0, "offsets/0/max": 0, "offsets/0/outside": pytest.approx(outside),
    }  # fmt: skip


@pytest.mark.parametrize("sampling_ratio", [1, 3])
@pytest.mark.parametrize("output_size, part", [((3, 3), (3, 3)), ((4, 2), (2, 2))])
def test_of_a_pooling(output_size, part, sampling_ratio):
    torch.manual_seed(0)
    rois = torch.tensor(ROIS[:7])
    offset = 6 * torch.randn(7, 4, *part)
    layer = DeformROIPool(output_size, SCALE, sampling_ratio)
    input = torch.zeros(2, 2, 9, 8)
    statistics = measure(
        nn.ModuleDict({"pool": layer}), lambda model: model["pool"](input, rois, offset)
    )[0]

    lengths, read = [], []
    for n, (_, x0, y0, x1, y1) in enumerate(ROIS[:7]):
        x, width = reference._roi_axis(x0, x1, SCALE, 0.5)
        y, height = reference._roi_axis(y0, y1, SCALE, 0.5)
        for k in range(2):
            for i in range(output_size[0]):
                for j in range(output_size[1]):
                    row, column = i * part[0] // output_size[0], j * part[1] // output_size[1]
                    dx, dy = (0.1 * offset[n, 2 * k : 2 * k + 2, row, column]).tolist()
                    lengths.append(((dx * width) ** 2 + (dy * height) ** 2) ** 0.5)
                    for a in range(sampling_ratio):
                        for b in range(sampling_ratio):
                            h = y + (i + a / sampling_ratio) * height / output_size[0] + dy * height
                            w = x + (j + b / sampling_ratio) * width / output_size[1] + dx * width
                            read.append(-0.5 <= h <= 8.5 and -0.5 <= w <= 7.5)
    assert 0.2 < sum(read) / len(read) < 0.8
    assert statistics == {
        "offsets/pool/mean": pytest.approx(sum(lengths) / len(lengths), rel=1e-4),
        "offsets/pool/max": pytest.approx(max(lengths), rel=1e-4),
        "offsets/pool/outside": pytest.approx(1 - sum(read) / len(read), abs=1e-6),
    }
    if sampling_ratio == 1:  # and by the operator: a bin without samples is 0
        pooled = deform_roi_pool(input + 1, rois, offset, output_size, SCALE, 1)
        expected = (pooled == 0).double().mean().item()
        assert statistics["offsets/pool/outside"] == pytest.approx(expected, abs=1e-6)


def test_only_every_so_many_iterations():
    model = nn.Sequential(deformable(nn.Conv2d(4, 4, 3)))
    hooked = []

    def run(model):
        hooked.append(bool(model[0].conv_offset._forward_hooks))
        model(torch.zeros(1, 4, 5, 5))

    found = measure(model, run, period=3, iterations=7)
    assert hooked == [False, False, True, False, False, True, False]
    assert [len(found[i]) for i in range(7)] == [0, 0, 3, 0, 0, 3, 0]
    measure(model, run, period=0)
    assert not hooked[-1]


def test_layers_that_do_not_run_and_empty_maps():
    model = nn.ModuleDict({name: deformable(nn.Conv2d(4, 4, 3)) for name in "abc"})

    def run(model):
        model["a"](torch.zeros(1, 4, 5, 5))
        model["b"](torch.zeros(0, 4, 5, 5))

    assert list(measure(model, run)[0]) == [f"offsets/a/{k}" for k in ("mean", "max", "outside")]
    assert measure(model, lambda model: None)[0] == {}
    pool = nn.ModuleDict({"pool": DeformROIPool(2, 1.0)})  # pools without offsets first
    assert not measure(pool, lambda m: m["pool"](torch.zeros(1, 1, 3, 3), torch.zeros(1, 5)))[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_ends_the_training(value):
    """Also where a later call of the layer is finite."""
    model = nn.ModuleDict({"a": DeformConv(1, 1, 1), "b": DeformConv(1, 1, 1)})
    bad = torch.zeros(1, 2, 4, 4)
    bad[0, 1, 2, 3] = value

    def run(model):
        good = torch.ones_like(bad)
        for name, offset in (("a", good), ("b", bad), ("b", good)):
            model[name](torch.zeros(1, 1, 4, 4), offset)

    with pytest.raises(FloatingPointError, match="iteration 0: b has offsets that are not finite"):
        measure(model, run)


@pytest.mark.parametrize("value, warns", [(5.5, True), (-5.5, True), (4.5, False)])
def test_what_is_larger_than_the_map_is_named(value, warns, caplog):
    """The map has 5 rows and 9 columns."""
    model = nn.Sequential(nn.Identity(), deformable(nn.Conv2d(4, 4, 3)))
    with torch.no_grad():
        model[1].conv_offset.bias[4] = value
        model[1].conv_offset.bias[5] = 8.5
    with caplog.at_level(logging.WARNING):
        measure(model, lambda model: model(torch.zeros(1, 4, 5, 9)))
    text = "Iteration 0: 1 has an offset of 1.1 times the size of its feature map"
    assert (text in caplog.text) == warns
