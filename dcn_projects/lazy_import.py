import importlib
import sys
from collections.abc import Callable, Mapping

__all__ = ["lazy_attributes"]


def lazy_attributes(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """
    For the `__init__` of a package that imports a module of it when one of its names is asked for.
    So a program that needs one part, such as the parser of a command line, does not wait for
    PyTorch.

    Args:
        package: `__name__` of the package
        modules: name -> the module below the package that defines it
    Returns:
        tuple: `__getattr__` and `__dir__` of the package
    """

    def __getattr__(name: str):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__
