"""For each schema in csrc/ops.cpp, what an operator has to have: csrc/README.md lists it."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import dcn_projects.layers
from dcn_projects.layers import fallback, library, onnx
from dcn_projects.layers.self_test import self_tests
from tests.layers import operators, reference

# Of torch 2.9 and later.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")

TESTS = Path(__file__).parent
LAYERS = TESTS.parents[1] / "dcn_projects/layers"


def missing(name: str) -> list[str]:
    """What an operator does not have, in words."""
    problems = []

    def require(there, what: str) -> bool:
        if not there:
            problems.append(what)
        return bool(there)

    try:
        product = importlib.import_module(f"dcn_projects.layers.{name}")
    except ImportError:
        product = None
    own_test, support = TESTS / f"test_{name}.py", operators.module(name)
    manual = (LAYERS / "csrc/README.md").read_text()
    require((LAYERS / f"csrc/{name}/{name}.h").exists(), f"csrc/{name}/{name}.h")
    require(re.search(rf"^\| `{name}` \|", manual, re.M), "a row in the table of csrc/README.md")
    require(name in dcn_projects.layers.__all__, "a line in layers/__init__.py")
    require(hasattr(product, "SELF_TEST"), f"SELF_TEST in layers/{name}.py")
    require(
        onnx.has_graph(name) or hasattr(product, "NO_ONNX"),
        f"layers/onnx/{name}.py, or NO_ONNX in layers/{name}.py",
    )
    if hasattr(product, name):
        try:
            torch.jit.script(getattr(product, name))
        except RuntimeError as error:
            problems.append(f"a function that torch.jit.script compiles: {error}")
    for schema in schemas_of(name):
        try:
            fallback.kernel(schema)
        except NotImplementedError as error:
            problems.append(str(error))
    require(hasattr(reference, name), f"{name} in tests/layers/reference.py")
    require(own_test.exists(), f"tests/layers/test_{name}.py")
    if require(hasattr(support, "make_inputs"), f"make_inputs in tests/layers/operators/{name}.py"):
        problems += _missing_registrations(name)
    return problems


def schemas_of(name: str) -> list[str]:
    return [n for n in library.OPERATORS if n in (name, f"_{name}_backward")]


def _missing_registrations(name: str) -> list[str]:
    inputs = operators.module(name).make_inputs()
    differentiable = any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs.values())
    if differentiable and f"_{name}_backward" not in library.OPERATORS:
        return [f"a schema of _{name}_backward, as its inputs require gradients"]
    problems, called = [], set()
    try:
        calls = operators.recorded_calls(name)
    except (NotImplementedError, RuntimeError) as error:
        return [f"a kernel that runs: {error}"]
    for schema, arguments, _ in calls:
        called.add(schema)
        function = getattr(torch.ops.dcn_projects, schema).default
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            try:
                function(*fakes)
            except Exception as error:
                problems.append(f"a fake kernel of {schema}: {error}")
    if differentiable and f"_{name}_backward" not in called:
        problems.append(f"register_autograd of {name}, which calls _{name}_backward")
    return problems


@pytest.mark.parametrize("name", library.PUBLIC_OPERATORS)
def test_nothing_is_missing(name):
    assert missing(name) == []


@pytest.mark.parametrize("name", library.PUBLIC_OPERATORS)
def test_self_test_passes(name):
    assert self_tests()[name].run("cpu") == "ok"


def test_every_derivative_belongs_to_an_operator():
    known = [schema for name in library.PUBLIC_OPERATORS for schema in schemas_of(name)]
    assert sorted(known) == sorted(library.OPERATORS)


def test_what_a_new_schema_lacks_is_named(monkeypatch):
    monkeypatch.setattr(library, "OPERATORS", [*library.OPERATORS, "new", "_new_backward"])
    assert missing("new") == [
        "csrc/new/new.h",
        "a row in the table of csrc/README.md",
        "a line in layers/__init__.py",
        "SELF_TEST in layers/new.py",
        "layers/onnx/new.py, or NO_ONNX in layers/new.py",
        "new has no fallback: layers/fallback/new.py needs a function new",
        "_new_backward has no fallback: layers/fallback/new.py needs a function new_backward",
        "new in tests/layers/reference.py",
        "tests/layers/test_new.py",
        "make_inputs in tests/layers/operators/new.py",
    ]


# An operator that is there, but for what Python registers.
_bare = torch.library.Library("dcn_projects", "FRAGMENT")
_bare.define("bare(Tensor x) -> Tensor")
_bare.define("_bare_backward(Tensor grad) -> Tensor")
_bare.impl("bare", lambda x: x.clone(), "CPU")


def test_what_is_not_registered_is_named(monkeypatch):
    class Support:
        @staticmethod
        def make_inputs():
            return {"x": torch.ones(2, requires_grad=True)}

    monkeypatch.setattr(operators, "module", lambda name: Support)
    monkeypatch.setattr(dcn_projects.layers, "bare", torch.ops.dcn_projects.bare, raising=False)
    found = _missing_registrations("bare")
    assert found == ["a schema of _bare_backward, as its inputs require gradients"]
    monkeypatch.setattr(library, "OPERATORS", ["bare", "_bare_backward"])
    found = _missing_registrations("bare")
    assert [problem.partition(":")[0] for problem in found] == [
        "a fake kernel of bare",
        "register_autograd of bare, which calls _bare_backward",
    ]
