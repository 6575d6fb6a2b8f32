"""Imports run downwards and in no circle. They are read from the sources: nothing is imported."""

import ast
import re
import sys
from pathlib import Path

import pytest

from .markdown_pages import blocks

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dcn_projects"

# Modules and packages directly below dcn_projects, from the bottom to the top. Each imports only
# those of lower rows, not those beside it. To move one is to change the design: CONTRIBUTING.md.
LEVELS = [
    {"config_files", "config_keys", "errors", "layers", "lazy_import", "whole_files"},
    {"config_renames", "interrupts"},
    {"config"},
    {"checkpoint", "data", "evaluation", "modeling", "solver", "vis"},
    {"engine"},
    {"collect_env", "model_zoo"},
]
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}


def module_name(path: Path) -> str:
    """dcn_projects/data/__init__.py -> dcn_projects.data"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, Path]:
    """Path of every module in these folders, by its name."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path): path for path in paths}


def imported(source: str, module: str, is_package: bool, modules) -> set[str]:
    """
    The modules that a module imports, anywhere in it. `from package import name` is an import of
    the module package.name if `modules` has it, else of the package. `__version__` is not counted:
    a package has it before it imports anything.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            names = {f"{base}.{a.name}" for a in node.names if a.name != "__version__"}
            found |= {name if name in modules else base for name in names}
    return found


MODULES = sources(PACKAGE)
GRAPH = {
    module: imported(path.read_text(), module, path.name == "__init__.py", MODULES)
    for module, path in MODULES.items()
}
OURS = {module: {name for name in names if name in MODULES} for module, names in GRAPH.items()}


def unit(module: str) -> str:
    """dcn_projects.data.labels -> data; of the package itself its name"""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import os.path, torch", {"os.path", "torch"}),
        ("from .b import name", {"p.a.b"}),
        ("from . import b, name", {"p.a.b", "p.a"}),
        ("from ..c import d", {"p.c.d"}),
        ("from p.c import d", {"p.c.d"}),
        ("from p import __version__, name", {"p"}),
        ("from p import __version__", set()),
        ("def f():\n    from p import c", {"p.c"}),
    ],
)
def test_imports_are_understood(source, expected):
    modules = {"p", "p.a", "p.a.b", "p.a.m", "p.c", "p.c.d"}
    assert imported(source, "p.a.m", False, modules) == expected
    assert imported(source, "p.a", True, modules) == expected


def test_every_module_has_a_level():
    units = {unit(module) for module in MODULES} - {PACKAGE}
    assert units == set(LEVEL), "name new ones in LEVELS, and leave out those that are gone"


def test_contributing_draws_these_levels():
    first = "train_net.py, tools, demo, tests\n"
    (picture,) = (b.text for b in blocks(ROOT / "CONTRIBUTING.md") if b.text.startswith(first))
    lines = [re.sub("^ *-> ", "", line) for line in picture.splitlines()[1:]]
    assert [set(line.split(", ")) for line in reversed(lines)] == LEVELS


@pytest.mark.parametrize("importer", sorted(LEVEL))
def test_imports_run_downwards(importer):
    wrong = [
        f"{module} imports {name}"
        for module, names in OURS.items()
        for name in names
        if unit(module) == importer != unit(name)
        if LEVEL.get(unit(name), len(LEVELS)) >= LEVEL[importer]
    ]
    assert not wrong


def test_no_circles():
    # What imports only what has been taken away is taken away, until nothing changes.
    left = {module: set(names) for module, names in OURS.items()}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not {module: names & left.keys() for module, names in left.items()}


def test_layers_need_torch_and_torchvision_alone():
    allowed = {"torch", "torchvision", *sys.stdlib_module_names}
    export = {"numpy", "onnx", "onnxscript"}  # what exporting to ONNX needs besides
    wrong = [
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        for name in names - OURS[module]
        if unit(module) == "layers"
        if name.partition(".")[0] not in allowed | (export if ".onnx" in module else set())
    ]
    assert not wrong


def test_nothing_imports_a_test_or_the_training_program():
    programs = sources(PACKAGE, "benchmarks", "demo", "tests", "tools")
    assert "tests.test_train_net" in programs
    for module, path in programs.items():
        names = imported(path.read_text(), module, path.name == "__init__.py", programs)
        tests = [n for n in names if n.startswith("tests.") and ".test_" in n]
        assert not tests, f"{module} imports {tests}: what tests share has a file of its own"
        assert "train_net" not in names or module == "tests.test_train_net", module
