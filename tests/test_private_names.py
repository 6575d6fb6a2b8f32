"""
docs/private_names.md lists every private name of another package that this one uses, and nothing
else; each name exists in the installed versions.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/private_names.md").read_text()
ROW = re.compile(
    r"^\| `(?P<name>[\w.]+)` \| (?P<stand_in>.+) \| `(?P<test>tests/[\w/.:]+)` \|$", re.MULTILINE
)
FILES = [*sorted((ROOT / "dcn_projects").rglob("*.py")), ROOT / "train_net.py"]

PRIVATE = re.compile(r"_[a-z]\w*|_[A-Z]\w*")
DOTTED = re.compile(r"(?:torch|torchvision|detectron2|fvcore)(?:\.\w+)*\._[a-zA-Z]\w*(?:\.\w+)*")
# The documented methods of a namedtuple have such names so that they meet no field.
NAMEDTUPLE = {"_replace", "_asdict", "_make", "_fields"}


def listed():
    return {row["name"]: row for row in ROW.finditer(PAGE)}


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree):
    """Name in a module -> the dotted name in another package that it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                dotted = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or dotted] = dotted
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def is_private(name):
    return PRIVATE.fullmatch(name) is not None


def is_ours(dotted):
    return dotted.startswith(("dcn_projects", "torch.ops.dcn_projects"))


def own_names(trees):
    """Private names that our own code defines, somewhere: functions, classes and attributes."""
    found = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


def origin(cls, name):
    """The first class of another package, from the root on, that has the method or attribute."""
    for base in reversed(cls.__mro__):
        if is_ours(base.__module__) or base.__module__ == "builtins":
            continue
        if name in vars(base) or f"self.{name} =" in source_of(base):
            return f"{base.__module__}.{base.__qualname__}.{name}"
    return None


def source_of(cls):
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # written in C
        return ""


def classes_of(file, tree):
    """Name -> class, of the classes that a file defines."""
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    if not names:
        return {}
    module = importlib.import_module(module_name(file))
    return {name: getattr(module, name) for name in names}


def used_in(file, tree, ours, classes=()):
    """
    Private names of other packages in a file; "*" where the owner is not known. `classes` are all
    of our own: what a class of ours overrides may come from a class that is mixed with it.
    """
    known, found = imports(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if DOTTED.fullmatch(node.value):
                found.add(node.value)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            dotted = ast.unparse(node)
            root, _, rest = dotted.partition(".")
            if root in ("self", "cls") or dotted.startswith("super()"):
                continue  # see below
            if root in known:
                found.add(f"{known[root]}.{rest}")
            elif node.attr not in ours | NAMEDTUPLE:
                found.add(f"*.{node.attr}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner, name = ast.unparse(node.args[0]), node.args[1]
            name = name.value if isinstance(name, ast.Constant) else ""
            if owner in known and is_private(name):
                found.add(f"{known[owner]}.{name}")
    found |= {dotted for dotted in known.values() if any(map(is_private, dotted.split(".")))}
    own_classes = classes_of(file, tree)
    for node in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        names = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        names = {name for name in names if is_private(name)}
        cls = own_classes[node.name]
        family = [cls, *(c for c in classes if issubclass(c, cls))]
        found |= {origin(c, name) for c in family for name in names} - {None}
    return {dotted for dotted in found if not is_ours(dotted)}


def without_prefixes(names):
    """torch._C goes where torch._C._name is."""
    return {n for n in names if not any(other.startswith(f"{n}.") for other in names)}


@pytest.fixture(scope="module")
def used():
    trees = {file: ast.parse(file.read_text()) for file in FILES}
    ours, found = own_names(trees), {}
    classes = [cls for file, tree in trees.items() for cls in classes_of(file, tree).values()]
    for file, tree in trees.items():
        for name in without_prefixes(used_in(file, tree, ours, classes)):
            found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def stands_for(name, entry):
    return entry == name or (name.startswith("*.") and entry.endswith(name[1:]))


def test_every_name_is_listed(used):
    lacking = {
        name: files
        for name, files in used.items()
        if not any(stands_for(name, entry) for entry in listed())
    }
    assert not lacking, "docs/private_names.md has no row for these"


def test_every_row_is_used(used):
    assert listed()
    unused = [e for e in listed() if not any(stands_for(name, e) for name in used)]
    assert not unused, "docs/private_names.md has rows of names that are not used"


@pytest.mark.parametrize("name", listed())
def test_the_name_exists(name):
    owner, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    assert hasattr(owner, attribute) or f"self.{attribute} =" in source_of(owner)


@pytest.mark.parametrize("name", listed())
def test_the_test_that_watches_it_exists(name):
    path, _, function = listed()[name]["test"].partition("::")
    assert (ROOT / path).is_file()
    assert not function or f"def {function}(" in (ROOT / path).read_text()


SAMPLE = """
from detectron2.utils import comm
from torch.nn.modules.conv import _ConvNd
import torch

NAMES = ["torch.autograd.function._SingleLevelFunction"]

def example(parser):
    comm._LOCAL = getattr(torch, "_check", None)
    return parser._actions, torch._C._thing, torch.ops.dcn_projects._deform_conv_backward
"""


def test_ways_of_using_a_name_are_found():
    tree = ast.parse(SAMPLE)
    assert without_prefixes(used_in(ROOT / "sample.py", tree, set())) == {
        "detectron2.utils.comm._LOCAL",
        "torch.nn.modules.conv._ConvNd",
        "torch.autograd.function._SingleLevelFunction",
        "torch._C._thing",
        "torch._check",
        "*._actions",
    }


def test_methods_of_detectron2_are_found(used):
    """A method that is overridden, and an attribute that is read."""
    names = [name for name in used if name.startswith("detectron2.")]
    assert any(name.endswith("._forward_box") for name in names)
    assert any(name.endswith("._predictions") for name in names)
    # Of CombinedROIHeads, which has no base: detectron2's heads are mixed with it.
    assert any(name.endswith("._forward_mask") for name in names)
