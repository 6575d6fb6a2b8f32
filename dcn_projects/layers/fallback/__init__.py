"""
The operators without a compiled library, or on CUDA with one that was built for the CPU only, with
the same results: `deform_conv` on torchvision's kernel, the others in plain PyTorch, on any device.
<op>.py has a function with the name and the arguments of each operator, and RUNS_ON where that is
not plain PyTorch.
"""

import functools
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from .. import library

_library = torch.library.Library("dcn_projects", "IMPL")


def register() -> None:
    """
    Makes these functions the kernels of the operators on all devices, and warns.

    Raises:
        NotImplementedError: if an operator has none
    """
    _warn(library.WHY_NOT_COMPILED, stacklevel=4)
    for name in library.OPERATORS:
        _library.impl(name, _without_autocast(kernel(name)), "CompositeExplicitAutograd")


def register_for_cuda() -> None:
    """
    Makes these functions the kernels of the operators for CUDA tensors. The first of these makes it
    warn, and import torchvision: a machine with such a library often has no GPU.
    """
    for name in library.OPERATORS:
        _library.impl(name, _warn_and_run(name), "CUDA")


def _warn(why: str, stacklevel: int) -> None:
    warnings.warn(
        f"{why} The operators of dcn_projects give the same results without "
        "it: deform_conv runs on torchvision's kernel, which is several times slower, holds the "
        "columns of whole maps in memory, and computes bfloat16 and float16 in float32; the others "
        "run in plain PyTorch, slower and with more memory.",
        stacklevel=stacklevel,
    )


def _warn_and_run(name: str) -> Callable:
    def run(*arguments):
        _warn_of_cuda()
        return _cuda_kernel(name)(*arguments)

    return run


@functools.cache
def _warn_of_cuda() -> None:
    _warn(library.WHY_NO_CUDA, stacklevel=4)


@functools.cache
def _cuda_kernel(name: str) -> Callable:
    return _without_autocast(kernel(name))


def kernel(name: str) -> Callable:
    """
    The function that stands in for an operator.

    Raises:
        NotImplementedError: if there is none
    """
    function = name.removeprefix("_")
    found = getattr(_module(name), function, None)
    if found is None:
        raise NotImplementedError(
            f"{name} has no fallback: layers/fallback/{_file(name)}.py needs a function {function}"
        )
    return found


def runs_on(name: str) -> str:
    """The library whose kernels the function of an operator calls."""
    return getattr(_module(name), "RUNS_ON", "PyTorch")


def _file(name: str) -> str:
    return name.removeprefix("_").removesuffix("_backward")


def _module(name: str) -> ModuleType | None:
    module = f"{__name__}.{_file(name)}"
    return import_module(module) if find_spec(module) else None


def _without_autocast(kernel: Callable) -> Callable:
    def run(tensor, *arguments):
        with torch.autocast(tensor.device.type, enabled=False):
            return kernel(tensor, *arguments)

    return run
