import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d
from detectron2.modeling import FPN
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.testing import assert_close

from dcn_projects.layers import DeformableConv2d, DeformConv, deformable
from tests.layers import reference

CONVS = {
    "3x3": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "1x1": lambda: nn.Conv2d(8, 6, 1),
    "oblong": lambda: nn.Conv2d(8, 6, (3, 1), (2, 1), (2, 0), (2, 1)),
    "5x5, strided": lambda: nn.Conv2d(8, 6, 5, 2, 2, bias=False),
    "groups": lambda: nn.Conv2d(8, 6, 3, dilation=2, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "same": lambda: nn.Conv2d(8, 6, (3, 5), padding="same", dilation=(1, 3)),
    "valid": lambda: nn.Conv2d(8, 6, (2, 3), padding="valid"),
    "detectron2": lambda: Conv2d(8, 6, 3, padding=1),
    "norm": lambda: Conv2d(8, 6, 3, bias=False, norm=nn.GroupNorm(2, 6), activation=F.relu),
}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_outputs_are_unchanged_at_first(name, modulated):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 11, 13)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        plain = CONVS[name]().to(dtype)
        conv = copy.deepcopy(plain)
        assert deformable(conv, modulated=modulated, groups=2) is conv
        assert_close(conv(x.to(dtype)), plain(x.to(dtype)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_matches_reference_once_the_offsets_have_learnt(name, modulated):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 11, 13, dtype=torch.float64)
    conv = deformable(CONVS[name]().double(), modulated=modulated, groups=2)
    K = conv.kernel_size[0] * conv.kernel_size[1]
    assert conv.conv_offset.weight.shape == ((6 if modulated else 4) * K, 8, *conv.kernel_size)
    nn.init.normal_(conv.conv_offset.weight, std=0.2)
    nn.init.normal_(conv.conv_offset.bias, std=0.2)
    padding = {"same": (1, 6), "valid": (0, 0)}.get(name, conv.padding)
    geometry = (conv.stride, padding, conv.dilation)
    predicted = F.conv2d(x, conv.conv_offset.weight, conv.conv_offset.bias, *geometry)
    mask = 2 / (1 + torch.exp(-predicted[:, 4 * K :])) if modulated else None
    out = reference.deform_conv(
        x, predicted[:, : 4 * K], conv.weight, conv.bias, *geometry, mask=mask
    )
    if name == "norm":
        out = F.relu(F.group_norm(out, 2, conv.norm.weight, conv.norm.bias))
    assert_close(conv(x), out)
    assert not torch.allclose(out, CONVS[name]().double()(x))


@pytest.mark.parametrize("mask_scale", [1.0, 0.5])
def test_the_mask_may_start_below_one(mask_scale):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 4, 3, bias=False))
    x, factor = torch.randn(1, 3, 9, 9), mask_scale / 2
    expected = factor**2 * model(x)
    assert_close(deformable(model, modulated=True, mask_scale=mask_scale)(x), expected)


@pytest.mark.parametrize("mask_scale", [1.0, 2.0])
@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize("dilated_offset", [False, True])
def test_of_its_own_constructor(mask_scale, legacy_border, dilated_offset):
    torch.manual_seed(0)
    conv = DeformableConv2d(
        8, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False, deformable_groups=4,
        modulated=True, norm=nn.GroupNorm(2, 6), activation=F.relu, legacy_border=legacy_border,
        mask_scale=mask_scale, offset_init="kaiming_uniform", dilated_offset=dilated_offset,
    ).double()  # fmt: skip
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    geometry = ((2, 2), (2, 2), (2, 2)) if dilated_offset else ((2, 2), (1, 1), (1, 1))
    assert conv.conv_offset.weight.any() and not conv.conv_offset.bias.any()
    predicted = F.conv2d(x, conv.conv_offset.weight, None, *geometry)
    out = reference.deform_conv(
        x, predicted[:, :72], conv.weight, None, 2, 2, 2,
        mask=mask_scale * predicted[:, 72:].sigmoid(), legacy_border=legacy_border,
    )  # fmt: skip
    out = F.group_norm(out, 2, conv.norm.weight, conv.norm.bias)
    assert_close(conv(x), F.relu(out))


def test_it_starts_and_prints_as_the_plain_convolution():
    conv = DeformableConv2d(3, 8, 3)
    x = torch.randn(1, 3, 9, 9)
    assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))
    assert repr(conv).startswith(
        "DeformableConv2d(\n  3, 8, kernel_size=(3, 3), stride=(1, 1), modulated=False, "
        "deformable_groups=1\n  (conv_offset): Conv2d(3, 18, "
    )
    conv = DeformableConv2d(3, 8, 3, padding="same", modulated=True, mask_scale=1)
    assert "mask_scale=1" in repr(conv)
    assert_close(
        conv(x) - conv.bias.view(-1, 1, 1),
        F.conv2d(x, conv.weight, padding=1) / 2,
    )
    assert "mask_scale" not in repr(deformable(nn.Conv2d(3, 8, 3), modulated=True))


def test_a_seed_gives_the_same_weights_again():
    torch.manual_seed(0)
    conv = DeformableConv2d(4, 4, 3, offset_init="kaiming_uniform")
    first = copy.deepcopy(conv.state_dict())
    nn.init.ones_(conv.conv_offset.bias)
    torch.manual_seed(0)
    conv.reset_parameters()
    assert all(torch.equal(p, first[name]) for name, p in conv.state_dict().items())
    bound = 1 / (4 * 9) ** 0.5  # that of nn.Conv2d
    assert 0.9 * bound < conv.weight.abs().max() <= bound


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(in_channels=0), "in_channels must be positive, got 0"),
        (dict(stride=0), "stride must be positive, got 0"),
        (dict(padding=(0, -1)), r"padding must not be negative, got \(0, -1\)"),
        (dict(deformable_groups=3), "do not divide into 1 groups and 3 deformable groups"),
        (dict(kernel_size=2, padding="same"), r"a kernel of \(2, 2\), for which 'same' pads"),
        (dict(offset_init="normal"), "offset_init is normal, expected one of"),
        (dict(dilation=2, dilated_offset=False), "an undilated convolution does not give offsets"),
        (dict(kernel_size=2, dilation=2, padding=1, dilated_offset=False), "an undilated"),
    ],
    ids=str,
)
def test_impossible_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeformableConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})


def test_a_plain_checkpoint_loads():
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), Conv2d(4, 2, 1, norm=nn.BatchNorm2d(2)))
    model = deformable(copy.deepcopy(plain))
    weights = {name: torch.rand_like(t.float()) for name, t in plain.state_dict().items()}
    result = model.load_state_dict(weights, strict=False)
    assert result.missing_keys == [
        f"{i}.conv_offset.{p}" for i in (0, 2) for p in ("weight", "bias")
    ]
    assert not result.unexpected_keys
    assert torch.equal(model[2].norm.weight, weights["2.norm.weight"])
    plain.load_state_dict(weights)
    x = torch.randn(1, 4, 9, 9)
    assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)
    copy.deepcopy(model).load_state_dict(model.state_dict())


def test_patterns_select_convolutions():
    def names(select):
        block = BottleneckBlock(4, 8, bottleneck_channels=4, norm="BN")
        model = nn.ModuleDict({"res5": nn.Sequential(block), "head": nn.Conv2d(8, 4, 3)})
        deformable(model, select)
        return [name for name, m in model.named_modules() if isinstance(m, DeformableConv2d)]

    assert names("*.conv2") == ["res5.0.conv2"]
    assert names(["head", "res5.0.conv[13]"]) == ["res5.0.conv1", "res5.0.conv3", "head"]
    assert names("res5.*") == [f"res5.0.{c}" for c in ("shortcut", "conv1", "conv2", "conv3")]


def test_without_patterns_every_plain_convolution_is_taken():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2), Conv2d(4, 4, 1), nn.ReLU()
    )
    deformable(model)
    assert [type(m) for m in model] == [
        DeformableConv2d,
        nn.ConvTranspose2d,
        DeformableConv2d,
        nn.ReLU,
    ]
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match="no convolution"):
        deformable(model)  # nor those that predict offsets now
    assert dict(model.named_modules()) == before
    with pytest.raises(ValueError, match="1 is a ConvTranspose2d"):
        deformable(model, select="[1]")


def test_modules_that_are_held_twice():
    """FPN calls its convolutions through a list that does not register them."""
    block = BottleneckBlock(4, 8, bottleneck_channels=4, norm="")
    bottom_up = ResNet(BasicStem(3, 4, norm=""), [[block]], out_features=["res2"])
    fpn = FPN(bottom_up, ["res2"], 4)
    x = torch.randn(1, 3, 32, 32)
    before = fpn(x)["p2"]
    deformable(fpn, "fpn_output*")
    assert_close(fpn(x)["p2"], before)
    nn.init.constant_(fpn.fpn_output2.conv_offset.bias, 0.5)
    assert not torch.allclose(fpn(x)["p2"], before, atol=1e-2)

    conv = nn.Conv2d(4, 4, 3)
    deformable(nn.ModuleDict({"a": conv, "b": conv}), ["b"])
    assert isinstance(conv, DeformableConv2d)


def test_gradient_reaches_the_offsets():
    torch.manual_seed(0)
    conv = deformable(nn.Conv2d(4, 4, 3, padding=1), modulated=True)
    conv(torch.randn(1, 4, 6, 6)).square().sum().backward()
    assert all((p.grad != 0).any() for p in conv.parameters())
    assert (conv.conv_offset.bias.grad != 0).all()


class OtherConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    "module, options, message",
    [
        (nn.ConvTranspose2d(4, 4, 3), {}, "a is a ConvTranspose2d, not a Conv2d of torch.nn or"),
        (nn.Conv1d(4, 4, 3), {}, "a is a Conv1d, not"),
        (OtherConv(4, 4, 3), {}, "a is a OtherConv, not"),
        (DeformConv(4, 4, 3), {}, "a is a DeformConv, not"),
        (nn.LazyConv2d(4, 3), {}, "a is a LazyConv2d, not"),
        (deformable(nn.Conv2d(4, 4, 3)), {}, "a is deformable already"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), {}, "a has padding_mode reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), {}, r"a has a kernel of \(2, 2\)"),
        (nn.Conv2d(4, 4, 3), dict(groups=3), "a has 4 channels, .* into 3 groups"),
        (nn.Conv2d(4, 4, 3), dict(groups=0), "b has 12 channels, .* into 0 groups"),
        (nn.Conv2d(4, 4, 3), dict(select=["*", "c*", "relu"]), r"matches \['c\*', 'relu'\]"),
        (nn.Conv2d(4, 4, 3), dict(select=[]), "no convolution"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_swapped_is_named(module, options, message):
    model = nn.ModuleDict({"b": nn.Conv2d(12, 12, 3), "a": module, "relu": nn.ReLU()})
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=f"^deformable: .*{message}"):
        deformable(model, **{"select": "?", **options})
    assert type(model["b"]) is nn.Conv2d and list(model.state_dict()) == before


def test_blocks_of_detectron2():
    block = DepthwiseSeparableConv2d(4, 6, norm1="BN", activation1=F.relu).eval()
    x = torch.randn(1, 4, 7, 7)
    before = block(x)
    assert_close(deformable(block, "depthwise")(x), before)
    assert "modulated=False, deformable_groups=1" in repr(block)


def test_no_rois():
    """The convolutions of a mask head, on an image without detections."""
    conv = deformable(Conv2d(4, 6, 3, padding=1), modulated=True)
    assert conv(torch.zeros(0, 4, 14, 14)).shape == (0, 6, 14, 14)
