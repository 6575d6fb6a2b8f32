"""
What the tests call the operators with, for those tests that are the same for all of them. <op>.py
has

    make_inputs(device="cpu", dtype=torch.float64, **options)    the arguments of the function, by
        name; the tensors that require gradients are those that the operator gives gradients of

and, for an operator that is to be in the test which reads it,

    TRANSFORMED, transform_inputs(size)   names of tensors and arguments on a map of that size, for
                                          torch.compile, torch.func and vmap (test_transforms.py)
    GRADIENT_CASES     kind -> options of make_inputs, for gradients.py
    FALLBACK_CASES     options of make_inputs, for test_fallback.py
    CUDA_CASES         kind -> options of make_inputs, for test_cuda.py
    thread_calls(rand, forward_backward)  kind -> a call, for test_threads.py
    FUZZ               see fuzzing.py
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dcn_projects.layers
from dcn_projects.layers import library


def module(name: str) -> ModuleType | None:
    full = f"{__name__}.{name}"
    return import_module(full) if find_spec(full) else None


def having(attribute: str) -> dict[str, Any]:
    """Name of an operator -> what its module has under this name, for those that have it."""
    found = {name: getattr(module(name), attribute, None) for name in library.PUBLIC_OPERATORS}
    return {name: value for name, value in found.items() if value is not None}


class RecordedCalls(TorchDispatchMode):
    """Within it, the calls of our operators: (name, arguments, result), derivatives too."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        namespace, _, name = function.name().partition("::")
        if namespace == "dcn_projects":
            self.calls.append((name, args, result))
        return result


def recorded_calls(name: str, **options) -> list[tuple]:
    """Calls of the operator, and of its derivative if it has one, on the inputs of its module."""
    with RecordedCalls() as recorded:
        out = getattr(dcn_projects.layers, name)(**module(name).make_inputs(**options))
        if isinstance(out, torch.Tensor) and out.requires_grad:
            out.cos().sum().backward()
    return recorded.calls
