"""
Deformable detection and segmentation for detectron2.

Importing this package imports nothing else. Models and data sets register when `modeling` and
`data` are imported, which `add_dcn_config` and the functions of `engine` do.
"""

__version__ = "0.2.0"
__all__ = ["__version__", "add_dcn_config"]


def __getattr__(name: str):
    if name != "add_dcn_config":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Whoever asks for the keys is about to build a model that has them, or to load data for it.
    from . import data, modeling  # noqa: F401
    from .config import add_dcn_config

    return add_dcn_config


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
