import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dcn_projects.layers import (
    DeformConv,
    DeformROIPool,
    ModulatedDeformConv,
    PSROIPool,
    multiclass_soft_nms,
)
from dcn_projects.layers.onnx import translation_table
from tests.layers.rois import ROIS, SCALE

if "custom_translation_table" not in inspect.signature(torch.onnx.export).parameters:
    pytest.skip("torch.onnx.export takes no table before PyTorch 2.6", allow_module_level=True)
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

DYNAMIC = torch.export.Dim.DYNAMIC
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3}
# RoIs that meet the edges; two whose first samples are the last that count; some that pool nothing.
ALL_ROIS = [*ROIS, [0, 0, 0, 20, 20], [1, 32, 36, 44, 44]]
ALL_ROIS += [[0, np.nan, 0, 9, 9], [1, 0, 0, np.inf, 9], [0, -np.inf, 0, 9, 9]]


def export(module: nn.Module, inputs: list) -> "onnx.ModelProto":
    """With batch, map and number of RoIs dynamic. Only standard operators may come of it."""
    free = {4: {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}, 2: {0: DYNAMIC}}
    shapes = [None if t is None else free[t.dim()] for t in inputs]
    if isinstance(module, DeformROIPool):
        shapes[1:] = [None if t is None else {0: DYNAMIC} for t in inputs[1:]]
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs),
        dynamo=True,
        opset_version=19,
        dynamic_shapes=tuple(shapes),
        custom_translation_table=translation_table(),
        verbose=False,
    )
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions and {node.domain for node in model.graph.node} == {""}
    return model


def run(model, inputs: list) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = [t.numpy() for t in inputs if t is not None]
    (out,) = session.run(None, {i.name: t for i, t in zip(session.get_inputs(), inputs)})
    return torch.from_numpy(out)


def assert_runs_alike(module: nn.Module, model, inputs: list) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    assert expected.isfinite().all() and expected.abs().max() > 0
    tolerance = TOLERANCE[expected.dtype] * expected.abs().max().item()
    assert_close(run(model, inputs), expected, rtol=0, atol=tolerance)


def conv_inputs(conv: DeformConv, N: int, size: tuple[int, int], dtype=torch.float32) -> list:
    """Offsets are in quarters of pixels, so that many samples fall onto the borders."""
    generator = torch.Generator().manual_seed(0)
    out_size = torch.nn.functional.conv2d(
        torch.zeros(1, 1, *size),
        torch.zeros(1, 1, *conv.kernel_size),
        None,
        conv.stride,
        conv.padding,
        conv.dilation,
    ).shape[2:]
    taps = conv.deformable_groups * conv.kernel_size[0] * conv.kernel_size[1]
    offset = torch.randn(N, 2 * taps, *out_size, generator=generator)
    offset = (offset * 12).round() / 4
    offset.view(-1)[:5] = torch.tensor([np.nan, np.inf, -np.inf, 6e4, -6e4])
    inputs = [torch.randn(N, conv.in_channels, *size, generator=generator), offset]
    if isinstance(conv, ModulatedDeformConv):
        inputs.append(torch.rand(N, taps, *out_size, generator=generator))
    return [t.to(dtype) for t in inputs]


@pytest.mark.skipif(
    tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 31),
    reason="known to have DeformConv on the CPU from 1.31 on",
)
@pytest.mark.parametrize("legacy_border", [False, True])
@pytest.mark.parametrize(
    "conv, arguments, dtype",
    [
        (DeformConv, dict(kernel_size=3, padding=1), torch.float32),
        (DeformConv, dict(kernel_size=1, stride=2, bias=True), torch.float64),
        (
            ModulatedDeformConv,
            dict(kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 3), groups=2),
            torch.float32,
        ),
        (
            ModulatedDeformConv,
            dict(kernel_size=3, padding=2, dilation=2, deformable_groups=3, bias=False),
            torch.float16,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_deform_conv(conv, arguments, dtype, legacy_border):
    torch.manual_seed(0)
    module = conv(6, 4, legacy_border=legacy_border, **arguments).to(dtype)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    model = export(module, conv_inputs(module, 2, (9, 8), dtype))
    assert [node.op_type for node in model.graph.node].count("DeformConv") == 1
    for N, size in [(2, (9, 8)), (1, (14, 23))]:
        assert_runs_alike(module, model, conv_inputs(module, N, size, dtype))


def roi_inputs(channels: int, dtype, N: int, size, rois, *shapes) -> list:
    """The last are of random values, with a row for each RoI."""
    generator = torch.Generator().manual_seed(0)
    rois = torch.tensor(rois, dtype=dtype).view(-1, 5)
    maps = torch.randn(N, channels, *size, generator=generator).to(dtype)
    others = [
        None if shape is None else torch.randn(len(rois), *shape, generator=generator).to(dtype)
        for shape in shapes
    ]
    return [maps, rois, *others]


def check_roi_pool(module: nn.Module, channels: int, dtype, *shapes) -> None:
    def inputs(*where):
        return roi_inputs(channels, dtype, *where, *shapes)

    model = export(module, inputs(2, (9, 8), ALL_ROIS))
    assert_runs_alike(module, model, inputs(2, (9, 8), ALL_ROIS))
    assert_runs_alike(module, model, inputs(3, (21, 13), [[2, 1, 2, 33, 41], *ROIS[:5]]))
    assert run(model, inputs(1, (5, 5), [])).shape == module(*inputs(1, (5, 5), [])).shape
    on_no_image = run(model, inputs(2, (9, 8), [[2, *ROIS[0][1:]], [-1, *ROIS[0][1:]]]))
    assert not on_no_image.any()


@pytest.mark.parametrize(
    "arguments, dtype",
    [
        (dict(output_size=3), torch.float32),
        (dict(output_size=(4, 6), group_size=(2, 3)), torch.float64),
        (dict(output_size=(2, 2), group_size=(3, 4)), torch.float32),  # channels without a bin
        (dict(output_size=7, group_size=1), torch.float16),
    ],
    ids=str,
)
def test_ps_roi_pool(arguments, dtype):
    module = PSROIPool(spatial_scale=SCALE, **arguments)
    group_h, group_w = module.group_size
    check_roi_pool(module, 3 * group_h * group_w, dtype)


@pytest.mark.parametrize(
    "arguments, offset, mask, dtype",
    [
        (dict(output_size=3), None, None, torch.float32),
        (dict(output_size=3, group_size=3), (2, 3, 3), None, torch.float32),
        (dict(output_size=(5, 4), group_size=(2, 3)), (2, 3, 2), None, torch.float64),
        (dict(output_size=2, sampling_ratio=2, gamma=0.5), (4, 2, 2), (2, 2, 2), torch.float32),
        (dict(output_size=4, group_size=2, sampling_ratio=3), (8, 4, 4), None, torch.float32),
        (dict(output_size=3), (8, 1, 1), (1, 3, 3), torch.float16),
    ],
    ids=str,
)
def test_deform_roi_pool(arguments, offset, mask, dtype):
    module = DeformROIPool(spatial_scale=SCALE, **arguments)
    group_h, group_w = module.group_size
    check_roi_pool(module, 4 * group_h * group_w, dtype, offset, mask)


def test_small_bins_of_a_large_map():
    # Sums of 10^5 numbers around 100: a table of them in float32 was wrong by 0.3 percent.
    module = PSROIPool(output_size=2, spatial_scale=1)
    maps = 100 + torch.rand(1, 4, 300, 400)
    rois = torch.tensor([[0, 390.0, 290.0, 392.0, 292.0], [0, 0, 0, 400, 300]])
    assert_runs_alike(module, export(module, [maps, rois]), [maps, rois])


def test_strange_offsets_move_samples_outside():
    module = DeformROIPool(output_size=3, spatial_scale=SCALE)
    inputs = roi_inputs(2, torch.float32, 2, (9, 8), ROIS, (2, 3, 3))
    inputs[2][:4, :, 0] = torch.tensor([np.nan, np.inf, -np.inf, 1e30])[:, None, None]
    model = export(module, inputs)
    assert_runs_alike(module, model, inputs)
    assert not run(model, inputs)[:4, :, 0].any()


class SoftNMS(nn.Module):
    def forward(self, boxes, scores):
        return multiclass_soft_nms(boxes, scores)


def test_refusal_says_why():
    with pytest.raises(Exception) as error:
        torch.onnx.export(
            SoftNMS(),
            (torch.rand(5, 4), torch.rand(5, 2)),
            dynamo=True,
            custom_translation_table=translation_table(),
            verbose=False,
        )
    causes, cause = "", error.value
    while cause:
        causes, cause = f"{causes}{cause}\n", cause.__cause__
    assert "soft_nms has no ONNX graph: how often its loop runs depends on the scores" in causes


def test_without_the_packages():
    """The package imports, and the table says what to install."""
    program = (
        "import sys; sys.modules.update(onnx=None, onnxscript=None, onnxruntime=None)\n"
        "import dcn_projects.layers.onnx\n"
        "try: dcn_projects.layers.onnx.translation_table()\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "ONNX export needs the package onnx: pip install onnx onnxscript\n"


def test_before_pytorch_2_6(monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, f, dynamo: None)
    with pytest.raises(RuntimeError, match="ONNX export needs PyTorch 2.6 or newer, this is"):
        translation_table()
