"""
What library.py does where the operators are not built, or not for CUDA, each in a process. The
operators themselves without a library: test_fallback.py.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcn_projects.layers.library import OPERATORS

ROOT = Path(__file__).resolve().parents[2]

# The operators defined as if a library built for the CPU had been loaded.
CPU_BUILD = """
import re, torch
lib = torch.library.Library("dcn_projects", "DEF")
def load_library(path):
    for name in re.findall(r'm.def."(\\w+)', open("csrc/ops.cpp").read()):
        lib.define(f"{name}(Tensor input) -> Tensor")
torch.ops.load_library = load_library
import library
assert library.COMPILED and not library.HAS_CUDA
print(library.WHY_NO_CUDA)
"""


# The same without the operators that the test adds to the source.
OLD_BUILD = CPU_BUILD.replace(".read()):", ".read().partition('newer')[0]):")


@pytest.fixture
def run(tmp_path):
    """A function: code, DCN_PROJECTS_FORCE_FALLBACK -> the finished process, beside a copy of
    library.py and the schemas."""
    layers = tmp_path / "package" / "layers"
    (layers / "csrc").mkdir(parents=True)
    for path in ["library.py", "csrc/ops.cpp"]:
        shutil.copy(ROOT / "dcn_projects/layers" / path, layers / path)

    def run(code, forced="0"):
        env = {**os.environ, "DCN_PROJECTS_FORCE_FALLBACK": forced}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=layers, env=env, capture_output=True, text=True)

    return run


DEFINED = """
import library, torch
assert not library.COMPILED and not library.HAS_CUDA and not library.WHY_NO_CUDA
print(library.WHY_NOT_COMPILED)
print(*(getattr(torch.ops.dcn_projects, name).default._schema for name in library.OPERATORS))
"""


def test_missing_library(run, tmp_path):
    result = run(DEFINED)
    assert result.stdout.startswith(f"The operators of dcn_projects are not built: {tmp_path}")
    assert "pip install --no-build-isolation -e ." in result.stdout
    # The same schemas as in the library, wherever these tests have one.
    for name in OPERATORS:
        assert str(getattr(torch.ops.dcn_projects, name).default._schema) in result.stdout


def test_forced_fallback_does_not_touch_the_library(run, tmp_path):
    (tmp_path / "package/_C.abi3.so").write_text("not a library")
    result = run(DEFINED, forced="1")
    assert result.stdout.startswith("DCN_PROJECTS_FORCE_FALLBACK=1"), result.stderr


def test_library_that_does_not_load(run, tmp_path):
    (tmp_path / "package/_C.abi3.so").write_text("not a library")
    result = run("import library")
    assert "ImportError" in result.stderr and "another version of torch" in result.stderr
    assert "pip install --no-build-isolation -e ." in result.stderr
    assert "DCN_PROJECTS_FORCE_FALLBACK=1" in result.stderr


def test_library_that_is_older_than_its_source(run, tmp_path):
    (tmp_path / "package/_C.abi3.so").touch()
    (tmp_path / "package/layers/csrc/ops.cpp").open("a").write(
        '  m.def("newer(Tensor x) -> Tensor");\n  m.def("_newer_backward(Tensor x) -> Tensor");\n'
    )
    result = run(OLD_BUILD)
    message = f"{tmp_path}/package/_C.abi3.so is older than its source: it lacks newer, _newer_back"
    assert f"ImportError: {message}" in result.stderr
    assert "Run again: pip install --no-build-isolation -e ." in result.stderr


def test_build_for_the_cpu_says_how_to_build_for_cuda(run, tmp_path):
    """What then serves CUDA tensors: test_fallback.py."""
    library = tmp_path / "package/_C.abi3.so"
    library.touch()
    result = run(CPU_BUILD)
    assert result.stdout.startswith(f"{library} was built for the CPU only"), result.stderr
    assert "run in the repository's folder: FORCE_CUDA=1 pip install" in result.stdout
