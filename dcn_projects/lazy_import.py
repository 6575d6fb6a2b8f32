import importlib
from collections.abc import Callable, Mapping

__all__ = ["lazy_attributes"]


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """
    A `__getattr__` for the `__init__` of a package, which imports a module of it when one of its
    names is asked for. So a program that needs one part, such as the parser of a command line, does
    not wait for PyTorch.

    Args:
        package: `__name__` of the package
        modules: name -> the module below the package that defines it
    """

    def __getattr__(name: str):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return __getattr__
