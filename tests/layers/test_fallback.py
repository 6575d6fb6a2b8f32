"""
The operators without a compiled library: all their tests once more, in a process of their own, and
against the compiled ones with work that is cut into many parts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from dcn_projects.layers import fallback
from dcn_projects.layers.fallback import chunks
from dcn_projects.layers.library import COMPILED, OPERATORS
from tests.layers import test_deform_conv as conv
from tests.layers import test_deform_roi_pool as deform_roi
from tests.layers import test_gradients as gradients
from tests.layers import test_ps_roi_pool as ps_roi
from tests.layers import test_soft_nms as nms
from tests.layers.rois import SCALE

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not COMPILED, reason="all tests run without a library")


def run_forced(*command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "DCN_PROJECTS_FORCE_FALLBACK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_tests_of_the_operators_pass():
    modules = [module.__file__ for module in (conv, ps_roi, deform_roi, nms, gradients)]
    # These are about registration, which is the same with and without a library, and slow.
    result = run_forced("-m", "pytest", "-q", *modules, "-k", "not registration and not compiles")
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_warns_once_of_what_is_lost():
    result = run_forced(
        "-c",
        "import dcn_projects.layers, torch\n"
        "from dcn_projects.layers import library\n"
        "assert not library.COMPILED\n"
        "for _ in range(2):\n"
        "    conv = dcn_projects.layers.DeformConv(2, 2, 1)\n"
        "    print(conv(torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).shape)\n",
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("UserWarning: DCN_PROJECTS_FORCE_FALLBACK=1") == 1
    assert result.stdout.count("torchvision's kernel, which is several times slower") == 1


def test_every_operator_has_a_kernel():
    assert list(fallback.KERNELS) == OPERATORS


def cases():
    """Name of an operator, its tensors, and its other arguments."""
    for dtype, modulated, legacy_border in [
        (torch.float64, True, False),
        (torch.float64, False, True),
        (torch.bfloat16, True, False),
    ]:
        inputs = conv.make_inputs(dtype=dtype, N=3, modulated=modulated, deformable_groups=2)
        tensors = [inputs.get(k) for k in ["input", "offset", "weight", "mask", "bias"]]
        yield "deform_conv", tensors, [[1, 1], [1, 1], [1, 1], legacy_border]
    inputs = ps_roi.make_inputs(output_size=(4, 6), group_size=(2, 3))
    yield "ps_roi_pool", [inputs["input"], inputs["rois"]], [[4, 6], SCALE, [2, 3]]
    for classes in (0, 2):
        inputs = deform_roi.make_inputs(classes=classes, group_size=(3, 3))
        tensors = [inputs[k] for k in ["input", "rois", "offset"]]
        yield "deform_roi_pool", tensors, [[3, 3], SCALE, 3, 0.1, [3, 3]]


@pytest.mark.parametrize("name,tensors,numbers", cases())
def test_work_in_many_parts(monkeypatch, name, tensors, numbers):
    monkeypatch.setattr(chunks, "_LARGEST", 1000)
    tensors = [t if t is None else t.detach() for t in tensors]
    compiled = getattr(torch.ops.dcn_projects, name)(*tensors, *numbers)
    tolerance = {"rtol": 0, "atol": 0.05 if compiled.dtype == torch.bfloat16 else 1e-12}
    assert_close(getattr(fallback, name)(*tensors, *numbers), compiled, **tolerance)

    grad = compiled.cos()
    if name == "deform_conv":
        tensors = tensors[:4]
    elif name == "ps_roi_pool":
        tensors, numbers = tensors[1:], [*numbers, list(tensors[0].shape)]
    actual = getattr(fallback, f"{name}_backward")(grad, *tensors, *numbers)
    expected = getattr(torch.ops.dcn_projects, f"_{name}_backward")(grad, *tensors, *numbers)
    assert_close(actual, expected, **tolerance)


@pytest.mark.parametrize("max_per_class", [None, 9])
def test_classes_in_many_parts(monkeypatch, max_per_class):
    monkeypatch.setattr(chunks, "_LARGEST", 1000)
    boxes, scores = nms.make_boxes(60), nms.make_scores(360)
    starts = torch.tensor([3, 3, 53, 60, 180, 180, 355])
    arguments = (boxes, scores, starts, "gaussian", 0.5, 0.3, 0.01, max_per_class)
    compiled = torch.ops.dcn_projects.soft_nms(*arguments)
    assert_close(fallback.soft_nms(*arguments), compiled, rtol=1e-12, atol=0)
