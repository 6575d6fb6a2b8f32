"""
The compiled operators, torch.ops.dcn_projects.*: importing this module loads them.

`HAS_CUDA` says whether they were built with CUDA.
"""

from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_BUILD = "pip install --no-build-isolation -e ."

OPERATORS = [
    "deform_conv",
    "_deform_conv_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_roi_pool",
    "_deform_roi_pool_backward",
]


def _load() -> None:
    """
    Raises:
        ImportError: if the library is not there, or is that of another PyTorch
    """
    libraries = sorted(_PACKAGE.glob("_C*.so"))
    if not libraries:
        raise ImportError(
            f"The operators of dcn_projects are not built: {_PACKAGE} has no _C*.so. "
            f"In the repository's folder run: {_BUILD}"
        )
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        raise ImportError(
            f"{libraries[0]} does not load with torch {torch.__version__}: {error}. "
            f"If it was built with another version of torch, run again: {_BUILD}"
        ) from error


def _refuse_cuda(*args, **kwargs):
    raise RuntimeError(
        "The operators of dcn_projects were built for the CPU only and got a CUDA tensor. "
        f"Where nvcc is on PATH or in CUDA_HOME, run again: FORCE_CUDA=1 {_BUILD} "
        "(it says what is missing), or move model and tensors to the CPU."
    )


_load()
HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("dcn_projects::deform_conv", "CUDA")
if not HAS_CUDA:
    # The dispatcher's own message lists dispatch keys and does not help. The registration lasts as
    # long as this object.
    _cuda_stand_ins = torch.library.Library("dcn_projects", "IMPL", "CUDA")
    for _name in OPERATORS:
        _cuda_stand_ins.impl(_name, _refuse_cuda)
