"""
Where the configs of this project are: beside the package in a checkout of the repository, and
inside it where a wheel was installed. A config is named by its path below configs/, as detectron2
names its own: "R-FCN/rfcn_R_101_C5_voc.yaml".
"""

import difflib
import os
from pathlib import Path

__all__ = [
    "config_folder",
    "config_names",
    "named_config_file",
    "resolve_config_file",
    "unknown_config",
]

_PACKAGE = Path(__file__).resolve().parent


def config_folder() -> Path:
    """The folder that has the folders of the models."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """The names of all configs that describe a model, sorted. Files named Base-* are no models."""
    folder = config_folder()
    paths = [p.relative_to(folder) for p in folder.rglob("*.yaml")]
    return sorted(p.as_posix() for p in paths if not p.name.startswith("Base-"))


def named_config_file(name: str) -> Path | None:
    """
    The file of a config by its name, or of a Base-* file. None if there is none of this name: a
    path that leads out of the folder of the configs is not a name.
    """
    folder = os.path.abspath(config_folder())
    path = Path(os.path.abspath(os.path.join(folder, name)))
    return path if path.is_relative_to(folder) and path.is_file() else None


def unknown_config(name: str) -> str:
    """One line that says that there is no config of this name, with the names that are nearest."""
    nearest = difflib.get_close_matches(name, config_names(), n=3)
    if not nearest:
        folder = config_folder()
        known = sorted({known.partition("/")[0] for known in config_names()})
        return f"{name} is not a config of dcn_projects. {folder} has those of {', '.join(known)}"
    return f"{name} is not a config of dcn_projects. The nearest names are {', '.join(nearest)}"


def resolve_config_file(path: str | os.PathLike) -> str:
    """
    Args:
        path: of any file, or the name of a config of this project. If both exist, it is the file
    Returns:
        str: the path of the file. What has a scheme (`https://`) stays as it is
    Raises:
        FileNotFoundError: if it is neither, in one line with the names that are nearest
    """
    path = os.fspath(path)
    if "://" in path or os.path.exists(path):
        return path
    named = named_config_file(path)
    if named is None:
        raise FileNotFoundError(f"There is no file {path}, and {unknown_config(path)}")
    return str(named)
