"""The operators in ONNX. Needs the packages onnx and onnxscript, but not before a table is made."""

import inspect
from collections.abc import Callable

import torch

from .. import library  # noqa: F401  loads the operators


def translation_table() -> dict[Callable, Callable]:
    """
    What `torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())` makes
    of the operators. `deform_conv` becomes the standard operator DeformConv, which needs opset 19
    (pass opset_version=19 where PyTorch's default is 18, before 2.9); `ps_roi_pool` and
    `deform_roi_pool` become graphs of standard operators of opset 18.

    Batch, map and RoIs may have dynamic sizes; channels, kernels and RoI offsets (but for the
    number of RoIs) may not. The graphs compute in float32, for float64 in float64, and round 16-bit
    results once, as the operators do. What differs: a RoI whose image index is not one of the batch
    gives 0, and an infinity or NaN in the input of a RoI operator reaches bins that do not read it.

    Returns:
        dict: operator -> function that builds its graph
    Raises:
        ImportError: without onnx and onnxscript
        RuntimeError: before PyTorch 2.6, whose exporter takes no table
    """
    if "custom_translation_table" not in inspect.signature(torch.onnx.export).parameters:
        raise RuntimeError(f"ONNX export needs PyTorch 2.6 or newer, this is {torch.__version__}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX export needs the package {error.name}: pip install onnx onnxscript"
        ) from error
    from .deform_conv import deform_conv
    from .deform_roi_pool import deform_roi_pool
    from .ps_roi_pool import ps_roi_pool

    return {
        torch.ops.dcn_projects.deform_conv.default: deform_conv,
        torch.ops.dcn_projects.deform_roi_pool.default: deform_roi_pool,
        torch.ops.dcn_projects.ps_roi_pool.default: ps_roi_pool,
    }
