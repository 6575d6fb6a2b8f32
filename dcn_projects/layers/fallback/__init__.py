"""
The operators without a compiled library, with the same results: `deform_conv` on torchvision's
kernel, the others in plain PyTorch, on any device. Each function has the arguments of its operator.
"""

import warnings
from collections.abc import Callable

import torch

from .. import library
from .deform_conv import deform_conv, deform_conv_backward
from .deform_roi_pool import deform_roi_pool, deform_roi_pool_backward
from .ps_roi_pool import ps_roi_pool, ps_roi_pool_backward
from .soft_nms import soft_nms

KERNELS = {
    "deform_conv": deform_conv,
    "_deform_conv_backward": deform_conv_backward,
    "ps_roi_pool": ps_roi_pool,
    "_ps_roi_pool_backward": ps_roi_pool_backward,
    "deform_roi_pool": deform_roi_pool,
    "_deform_roi_pool_backward": deform_roi_pool_backward,
    "soft_nms": soft_nms,
}

_library = torch.library.Library("dcn_projects", "IMPL")


def register() -> None:
    """Makes these functions the kernels of the operators on all devices, and warns."""
    warnings.warn(
        f"{library.WHY_NOT_COMPILED} The operators of dcn_projects give the same results without "
        "it: deform_conv runs on torchvision's kernel, which is several times slower, holds the "
        "columns of whole maps in memory, and computes bfloat16 and float16 in float32; the others "
        "run in plain PyTorch, slower and with more memory.",
        stacklevel=3,
    )
    for name, kernel in KERNELS.items():
        _library.impl(name, _without_autocast(kernel), "CompositeExplicitAutograd")


def _without_autocast(kernel: Callable) -> Callable:
    def run(tensor, *arguments):
        with torch.autocast(tensor.device.type, enabled=False):
            return kernel(tensor, *arguments)

    return run
