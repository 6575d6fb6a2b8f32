"""Packages that import their modules when a name is asked for still list their names."""

import importlib
import subprocess
import sys

import pytest

LIST = """
import sys, {0}
missing = set({0}.__all__) - set(dir({0}))
assert not missing and "__name__" in dir({0}), missing
assert not {1}.intersection(sys.modules)
"""


@pytest.mark.parametrize(
    "package, not_imported",
    [
        ("dcn_projects", {"torch", "detectron2"}),
        ("dcn_projects.engine", {"torch", "detectron2"}),
        ("dcn_projects.vis", {"dcn_projects.vis.drawers"}),
    ],
)
def test_names_are_listed_without_an_import(package, not_imported):
    program = LIST.format(package, not_imported)
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("package", ["dcn_projects", "dcn_projects.engine", "dcn_projects.vis"])
def test_all_names_exist(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        getattr(module, name)
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
