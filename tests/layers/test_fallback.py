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
from dcn_projects.layers.library import COMPILED, PUBLIC_OPERATORS
from tests.layers import operators
from tests.layers.operators.soft_nms import make_boxes, make_scores

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
    modules = [f"tests/layers/test_{name}.py" for name in [*PUBLIC_OPERATORS, "gradients"]]
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


# The package with a library that has no kernels but for the CPU; those of the fallback stand in for
# its own. What is registered for CUDA then is called with tensors of the CPU.
CPU_BUILD = """
import torch, torchvision, warnings  # torchvision loads a library too

lib = torch.library.Library("dcn_projects", "DEF")
def load_library(path):
    from dcn_projects.layers.library import SCHEMAS
    for schema in SCHEMAS.values():
        lib.define(schema)
torch.ops.load_library = load_library
with warnings.catch_warnings():
    warnings.simplefilter("error")  # there is nothing to warn of yet
    import dcn_projects.layers
from dcn_projects import collect_env
from dcn_projects.layers import fallback, library
from tests.layers import operators

assert library.COMPILED and not library.HAS_CUDA
for name in library.OPERATORS:
    lib.impl(name, fallback.kernel(name), "CPU")
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
called = set()
for name in library.PUBLIC_OPERATORS:
    for name, arguments, expected in operators.recorded_calls(name):
        op = getattr(torch.ops.dcn_projects, name).default
        assert op.has_kernel_for_dispatch_key("CUDA")
        for _ in range(2):
            actual = op.redispatch(cuda, *arguments)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        called.add(name)
assert called == set(library.OPERATORS), called
print(*collect_env.kernels()[0])
"""


def test_serves_cuda_where_the_library_is_for_the_cpu():
    """Of a real GPU, this shows which kernels are registered for it and what they warn of."""
    result = subprocess.run(
        [sys.executable, "-c", CPU_BUILD], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "deform_conv compiled torchvision\n"
    assert result.stderr.count("UserWarning: ") == 1
    assert "was built for the CPU only, and got a CUDA tensor." in result.stderr
    assert "FORCE_CUDA=1 pip install --no-build-isolation -e ." in result.stderr
    assert "torchvision's kernel, which is several times slower" in result.stderr


CASES = [
    (name, options)
    for name, cases in operators.having("FALLBACK_CASES").items()
    for options in cases
]


@pytest.mark.parametrize("name, options", CASES, ids=str)
def test_work_in_many_parts(monkeypatch, name, options):
    monkeypatch.setattr(chunks, "_LARGEST", 1000)
    calls = operators.recorded_calls(name, **options)
    assert [called for called, *_ in calls] == [name, f"_{name}_backward"]
    tolerance = 0.05 if options.get("dtype") == torch.bfloat16 else 1e-12
    for called, arguments, compiled in calls:
        actual = fallback.kernel(called)(*arguments)
        assert_close(actual, compiled, rtol=0, atol=tolerance)


def test_what_is_missing_is_named():
    with pytest.raises(NotImplementedError, match="layers/fallback/new.py needs a function new_ba"):
        fallback.kernel("_new_backward")


@pytest.mark.parametrize("max_per_class", [None, 9])
def test_classes_in_many_parts(monkeypatch, max_per_class):
    monkeypatch.setattr(chunks, "_LARGEST", 1000)
    boxes, scores = make_boxes(60), make_scores(360)
    starts = torch.tensor([3, 3, 53, 60, 180, 180, 355])
    arguments = (boxes, scores, starts, "gaussian", 0.5, 0.3, 0.01, max_per_class)
    compiled = torch.ops.dcn_projects.soft_nms(*arguments)
    assert_close(fallback.kernel("soft_nms")(*arguments), compiled, rtol=1e-12, atol=0)
