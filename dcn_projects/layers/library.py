"""
The operators, torch.ops.dcn_projects.*: importing this module loads the compiled ones. Where they
are not built, or with DCN_PROJECTS_FORCE_FALLBACK=1, it defines the same operators without kernels,
and `fallback` adds those. A library that is there but does not load is an error: it would be wrong
to be slow without saying so.

`SCHEMAS` holds all operators, by name; what depends on a list of them reads it from here.
`COMPILED` says whether the compiled operators are used, `PATH` where they are, `WHY_NOT_COMPILED`
why they are not. `HAS_CUDA` says whether there are compiled ones for CUDA, `WHY_NO_CUDA` why there
are none in a library that is used.
"""

import os
import re
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_BUILD = "pip install --no-build-isolation -e ."


def _read_schemas() -> dict[str, str]:
    """Name of an operator -> its schema, from the source of the compiled library."""
    source = Path(__file__).with_name("csrc") / "ops.cpp"
    schemas = re.findall(r'm\.def\("(.*)"\);', source.read_text())
    return {schema[: schema.index("(")]: schema for schema in schemas}


SCHEMAS = _read_schemas()
OPERATORS = list(SCHEMAS)
# Without their derivatives, which are operators of their own.
PUBLIC_OPERATORS = [name for name in OPERATORS if not name.startswith("_")]


def _find() -> tuple[Path | None, str]:
    """
    Returns:
        (the library, ""), or (None, why it is not used)
    """
    if os.environ.get("DCN_PROJECTS_FORCE_FALLBACK") == "1":
        return None, "DCN_PROJECTS_FORCE_FALLBACK=1: the compiled library is not used."
    libraries = sorted(_PACKAGE.glob("_C*.so"))
    if libraries:
        return libraries[0], ""
    return None, (
        f"The operators of dcn_projects are not built: {_PACKAGE} has no _C*.so. To build them, "
        f"with a C++ compiler, run in the repository's folder: {_BUILD}"
    )


def _load(path: Path) -> None:
    """
    Raises:
        ImportError: if the library is that of another PyTorch, or older than its source
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load with torch {torch.__version__}: {error}. "
            f"If it was built with another version of torch, run again: {_BUILD} "
            "(or set DCN_PROJECTS_FORCE_FALLBACK=1 to do without it)"
        ) from error
    lacking = [name for name in OPERATORS if not hasattr(torch.ops.dcn_projects, name)]
    if lacking:
        raise ImportError(
            f"{path} is older than its source: it lacks {', '.join(lacking)}. Run again: {_BUILD}"
        )


def _define() -> torch.library.Library:
    """Defines the operators as the compiled library does."""
    library = torch.library.Library("dcn_projects", "DEF")
    for schema in SCHEMAS.values():
        library.define(schema)
    return library


PATH, WHY_NOT_COMPILED = _find()
COMPILED = PATH is not None
if COMPILED:
    _load(PATH)
else:
    _definitions = _define()  # they last as long as this object
HAS_CUDA = COMPILED and all(
    getattr(torch.ops.dcn_projects, name).default.has_kernel_for_dispatch_key("CUDA")
    for name in OPERATORS
)
WHY_NO_CUDA = (
    ""
    if HAS_CUDA or not COMPILED
    else f"{PATH} was built for the CPU only, and got a CUDA tensor. Where nvcc is on PATH or in "
    f"CUDA_HOME, run in the repository's folder: FORCE_CUDA=1 {_BUILD} (it says what is missing)."
)
