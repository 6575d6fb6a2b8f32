"""
The operators in ONNX. Needs the packages onnx and onnxscript, but not before a table is made.

<op>.py has a function of the name of each operator that builds its graph; an operator without one
says why in NO_ONNX of its own module. Where an operator samples, and the region of a RoI, are
written here once more, as nodes of a graph on symbolic values: the functions of sampling.py and
roi_region.py compute with tensors. tests/layers/test_onnx.py compares the two.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

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
    return {
        getattr(torch.ops.dcn_projects, name).default: graph_builder(name)
        for name in library.PUBLIC_OPERATORS
    }


def has_graph(name: str) -> bool:
    """Whether an operator has a graph, which is in a file of its name."""
    return find_spec(f"{__name__}.{name}") is not None


def graph_builder(name: str) -> Callable:
    """
    The function that builds the graph of an operator. Where there is none, it is one that raises
    NotImplementedError with the reason when a model with the operator is exported.
    """
    if has_graph(name):
        return getattr(import_module(f"{__name__}.{name}"), name)
    operator = import_module(f"..{name}", __name__)

    def refuse(input, *arguments):
        raise NotImplementedError(f"{name} has no ONNX graph: {operator.NO_ONNX}")

    return refuse
