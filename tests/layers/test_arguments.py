"""
Lists of numbers and sizes that no operator can use. A list of a wrong length ended the process.
"""

import re

import pytest
import torch

from dcn_projects.layers import DeformConv, deform_conv, deform_roi_pool, ps_roi_pool
from tests.layers.arguments import calls_with_lists, check_lists, outcomes
from tests.layers.operators.deform_conv import make_inputs

CALLS = calls_with_lists()
CASES = [(name, place) for name, (_, places) in CALLS.items() for place in places]
PAIRS = [
    (),
    (1,),
    (1, 1, 1),
    (-1, 1),
    (1, -1),
    (2**31, 1),
    (1, 2**63 - 1),
    (2**62, 2**62),
    (-(2**63), 1),
]


def test_all_lists_are_found():
    assert [name for name, _ in CASES] == [
        *["deform_conv"] * 3,
        *["_deform_conv_backward"] * 3,
        *["ps_roi_pool"] * 2,
        *["_ps_roi_pool_backward"] * 3,
        *["deform_roi_pool"] * 2,
        *["_deform_roi_pool_backward"] * 2,
    ]


@pytest.mark.parametrize("name,place", CASES)
def test_all_kernels_refuse_the_same_lists(name, place):
    arguments, _ = CALLS[name]
    assert check_lists(name, arguments)
    if len(arguments[place]) == 2:
        for pair in PAIRS:
            changed = [*arguments[:place], pair, *arguments[place + 1 :]]
            assert not check_lists(name, changed)
            (text,) = set(outcomes(name, changed).values())
            end = re.escape(f"got {list(pair)}")
            assert re.search(rf" must be two numbers from [01] to \d+, {end}$", text), text


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (2, 27, 9),
        (2, 27, 9, 8, 1),
        (-1, 27, 9, 8),
        (2, 0, 9, 8),
        (2, 27, -9, 8),
        (2, 27, 2**24 + 1, 8),
        (2, 27, 2**24, 2**24),
        (2**62, 27, 9, 8),
        (2**62, 27, 2**62, 8),
        (2, 2**62, 9, 8),
    ],
)
def test_shape_of_the_gradient(shape):
    arguments, places = CALLS["_ps_roi_pool_backward"]
    assert list(arguments[places[-1]]) == [2, 27, 9, 8]
    assert not check_lists("_ps_roi_pool_backward", [*arguments[: places[-1]], shape])


def no_memory(*shape):
    return torch.zeros(1).expand(shape)


@pytest.mark.parametrize("height,width", [(2**24 + 1, 1), (1, 2**24 + 1), (2**24, 2**24)])
@pytest.mark.parametrize("name", ["ps_roi_pool", "deform_roi_pool"])
def test_maps_that_are_too_large(name, height, width):
    tensors = [no_memory(1, 1, height, width), torch.tensor([[0.0, 0, 0, 4, 4]])]
    numbers = (
        [(1, 1), 1.0, (1, 1)] if name == "ps_roi_pool" else [None, (1, 1), 1.0, 1, 0.1, (1, 1)]
    )
    assert not check_lists(name, [*tensors, *numbers])
    (text,) = set(outcomes(name, [*tensors, *numbers]).values())
    assert f"sides are at most 2^24, got [1, 1, {height}, {width}]" in text


@pytest.mark.parametrize("height,padding", [(2**31, 0), (2**31 - 4, 0), (2**28, 2**28)])
def test_maps_that_are_too_large_for_a_convolution(height, padding):
    tensors = [no_memory(1, 1, height, 1), no_memory(1, 2, 1, 1), no_memory(1, 1, 1, 1), None, None]
    arguments = [*tensors, (2**31 - 1, 1), (padding, 0), (1, 1), False]
    assert not check_lists("deform_conv", arguments)
    assert "less than 2^31" in outcomes("deform_conv", arguments)["fake"]


def test_too_many_scores():
    tensors = [no_memory(2**30 + 1, 4), no_memory(2**30 + 1), torch.tensor([0, 1])]
    arguments = [*tensors, "hard", 0.5, 0.5, 0.0, None]
    assert not check_lists("soft_nms", arguments)
    assert "at most 2^30 scores, got 1073741825" in outcomes("soft_nms", arguments)["fake"]


def test_functions_and_modules_quote_what_came():
    inputs = make_inputs()
    for name, pair in (("stride", ()), ("padding", (1,)), ("dilation", (1, 1, 1))):
        with pytest.raises(RuntimeError, match=rf"deform_conv: {name} must be two .*{len(pair)}?"):
            deform_conv(**inputs | {name: pair})
        with pytest.raises(ValueError, match=f"{name} must be a number or two, got \\("):
            DeformConv(8, 6, 3, **{name: pair})
    rois = torch.tensor([[0.0, 0, 0, 4, 4]]).double()
    with pytest.raises(RuntimeError, match=r"ps_roi_pool: output_size must be two .* got \[3\]"):
        ps_roi_pool(inputs["input"], rois, (3,), 1.0)
    with pytest.raises(RuntimeError, match=r"deform_roi_pool: group_size must be two .*\[1, 1, 1"):
        deform_roi_pool(inputs["input"], rois, None, 3, 1.0, group_size=(1, 1, 1))
