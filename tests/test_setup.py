"""What setup.py decides to build. It runs with a torch and a CUDA toolkit that are stand-ins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dcn_projects

ROOT = Path(__file__).resolve().parents[1]

TORCH = """
import os
__version__ = "2.11.0"
class version:
    cuda = os.environ.get("TORCH_CUDA")
class cuda:
    is_available = staticmethod(lambda: "CAPABILITY" in os.environ)
    device_count = staticmethod(lambda: 1)
    get_device_capability = staticmethod(lambda i: tuple(map(int, os.environ["CAPABILITY"])))
"""
CPP_EXTENSION = """
import os
from setuptools import Extension
from setuptools.command.build_ext import build_ext
CUDA_HOME = os.environ.get("CUDA_HOME")
def CppExtension(name, sources, extra_compile_args, **kwargs):
    print("flags", *extra_compile_args["cxx"], "|", *kwargs["extra_link_args"])
    return Extension(name, sources, **kwargs)
CUDAExtension = CppExtension
class BuildExtension(build_ext):
    def run(self):
        extension = self.extensions[0]
        print(len([s for s in extension.sources if s.endswith(".cu")]), "CUDA sources", CUDA_HOME)
"""
NVCC = """#!/bin/sh
case "$1" in
  --dryrun) echo '#$ TOP={top}' >&2;;
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88';;
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n';;
esac
"""


@pytest.fixture
def build(tmp_path):
    """A function: environment variables -> the finished build_ext, with an nvcc on PATH that is a
    script in another folder than the toolkit."""

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)

    write("site/torch/__init__.py", TORCH)
    write("site/torch/utils/__init__.py", "")
    write("site/torch/utils/cpp_extension.py", CPP_EXTENSION)
    write("toolkit/include/cuda_runtime_api.h", "")
    write("toolkit/lib/libcudart.so", "")
    for path in ["bin/nvcc", "toolkit/bin/nvcc"]:
        write(path, NVCC.format(top=tmp_path / "toolkit/bin/.."))

    def run(**env):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=ROOT,
            env={"PATH": path, "PYTHONPATH": str(tmp_path / "site"), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    "env, architectures",
    [
        ({}, "7.5 8.0 9.0+PTX"),
        ({"CAPABILITY": "90"}, "9.0"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;9.0", "CAPABILITY": "75"}, "8.0 9.0"),
        ({"FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}, "7.5 8.0 9.0+PTX"),
    ],
    ids=str,
)
def test_cuda_is_built_where_nvcc_fits(build, tmp_path, env, architectures):
    result = build(TORCH_CUDA="13.0", **env)
    *_, sources, operators = result.stdout.splitlines()
    assert operators == f"operators: CPU + CUDA 13.0 ({architectures})"
    # Not the folder above the script on PATH.
    assert sources.endswith(f"CUDA sources {tmp_path / 'toolkit'}")
    assert result.returncode == 0 and not sources.startswith("0 ")


@pytest.mark.parametrize(
    "env, reason",
    [
        ({"TORCH_CUDA": "13.0", "FORCE_CUDA": "0"}, "FORCE_CUDA=0"),
        ({}, "torch 2.11.0 has no CUDA; install a build of torch that has"),
        ({"TORCH_CUDA": "12.8"}, "nvcc is of CUDA 13.0, torch of 12.8; set CUDA_HOME"),
    ],
    ids=str,
)
def test_cpu_only_says_why(build, env, reason):
    result = build(**env)
    *_, sources, operators = result.stdout.splitlines()
    assert operators == f"operators: CPU only ({reason})"
    assert result.returncode == 0 and sources.startswith("0 ")


@pytest.mark.parametrize("env", [{}, {"TORCH_CUDA": "12.8"}], ids=str)
def test_forced_cuda_that_cannot_be_built_is_an_error(build, env):
    result = build(FORCE_CUDA="1", **env)
    assert result.returncode != 0 and "FORCE_CUDA=1, but" in result.stdout


def test_without_a_compiler_nothing_is_built(build):
    result = build(TORCH_CUDA="13.0", CXX="/nowhere/c++ -m64")
    assert result.returncode == 0
    start = "operators: none (no C++ compiler found: /nowhere/c++ -m64 is not on PATH;"
    assert result.stdout.splitlines()[-1].startswith(start)
    assert "CUDA sources" not in result.stdout
    result = build(TORCH_CUDA="13.0", CXX="/nowhere/c++", FORCE_CUDA="1")
    assert result.returncode != 0 and "FORCE_CUDA=1, but there is no C++" in result.stdout


def test_more_flags_win_over_the_usual_ones(build):
    lines = build(DCN_CXXFLAGS="-O1 '-DA=b c'").stdout.splitlines()
    (flags,) = (line for line in lines if line.startswith("flags "))
    compiler, linker = flags.split(" | ")
    assert compiler.startswith("flags -O3 ") and compiler.endswith(" -O1 -DA=b c")
    assert linker.endswith(" -O1 -DA=b c")


def test_without_torch_it_says_what_to_install(build, tmp_path):
    (tmp_path / "site/torch/__init__.py").write_text("raise ImportError")
    result = build()
    assert result.returncode != 0
    assert "pip install --no-build-isolation -e ." in result.stdout


def test_citation_is_of_this_version():
    assert f"\nversion: {dcn_projects.__version__}\n" in (ROOT / "CITATION.cff").read_text()
