"""csrc/README.md leads to a working operator: its blocks are written into a copy and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from dcn_projects.layers.library import OPERATORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "dcn_projects/layers/csrc/README.md").read_text()
BLOCK = re.compile(
    r"^```\w+\n(?://|#|<!--) (?P<header>.*?)(?: -->)?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMPILER = os.environ.get("CXX", "c++")


def blocks():
    """(path, where in the file or None for a new one, text)"""
    for match in BLOCK.finditer(PAGE):
        path, _, place = match["header"].partition(", ")
        yield path, place or None, match["text"]


def write(folder, path, place, text):
    file = folder / path
    if place is None:
        assert not file.exists(), f"{path} is there already"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return
    lines = file.read_text().splitlines(keepends=True)
    if place == "at the end":
        at = len(lines)
    else:
        at = lines.index(place.removeprefix("after: ") + "\n") + 1
    file.write_text("".join([*lines[:at], text, *lines[at:]]))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package and the tests that the page is about, with the blocks of the page."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "dcn_projects", folder / "dcn_projects", ignore=ignored)
    ignored = shutil.ignore_patterns("__pycache__", "test_*.py")
    shutil.copytree(ROOT / "tests/layers", folder / "tests/layers", ignore=ignored)
    for name in ("__init__.py", "devices.py", "layers/test_operators_are_complete.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    for block in blocks():
        write(folder, *block)
    return folder


def check(folder, fallback):
    result = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-k", "sample_points", "-p", "no:cacheprovider",
            "tests/layers/test_sample_points.py", "tests/layers/test_operators_are_complete.py",
        ],
        cwd=folder,
        env={**os.environ, "DCN_PROJECTS_FORCE_FALLBACK": fallback},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    # Two are of the test of completeness, which runs the self test as well.
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) == 12, result.stdout
    warned = "The operators of dcn_projects give the same results without it" in result.stdout
    assert warned == (fallback == "1"), result.stdout


def test_number_of_files():
    """At most 8 of the product and 4 of the tests."""
    paths = {path for path, *_ in blocks()}
    assert len([p for p in paths if p.startswith("dcn_projects/")]) == 8
    assert 0 < len([p for p in paths if p.startswith("tests/")]) <= 4
    assert all(p.startswith(("dcn_projects/", "tests/")) for p in paths)


def test_without_a_library(copy):
    check(copy, "1")


@pytest.mark.skipif(shutil.which(COMPILER.split()[0]) is None, reason="there is no C++ compiler")
def test_compiled_for_the_cpu(copy):
    """The library holds all schemas, but kernels of the new operator alone, which saves minutes."""
    csrc, objects = copy / "dcn_projects/layers/csrc", []
    flags = ["-O0", "-g0", "-fPIC", "-fopenmp", "-std=c++17", "-w"]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    flags += [f"-I{path}" for path in cpp_extension.include_paths()]
    compilers = []
    for source in (csrc / "ops.cpp", csrc / "sample_points/sample_points_cpu.cpp"):
        objects.append(copy / f"{source.stem}.o")
        command = [*COMPILER.split(), *flags, "-c", str(source), "-o", str(objects[-1])]
        compilers.append(subprocess.Popen(command))
    assert [compiler.wait() for compiler in compilers] == [0, 0]
    library = copy / "dcn_projects/_C.abi3.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    link = [*COMPILER.split(), "-shared", "-fopenmp", *map(str, objects), *paths]
    subprocess.run([*link, "-ltorch_cpu", "-lc10", "-o", str(library)], check=True)
    try:
        check(copy, "0")
    finally:
        library.unlink()


def test_the_package_itself_does_not_have_it():
    assert "sample_points" not in OPERATORS
