"""
Functions and modules under torch.jit.script, with the results and gradients of the same functions
in Python. Each script is called more than once: from the third call on it is an optimized one.
"""

import inspect
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import dcn_projects.layers
from dcn_projects.layers import (
    DeformableConv2d,
    DeformConv,
    DeformROIPool,
    ModulatedDeformConv,
    PSROIPool,
    batched_soft_nms,
    deform_conv,
    deform_roi_pool,
    deformable,
    multiclass_soft_nms,
    ps_roi_pool,
    soft_nms,
)
from tests.layers.operators import deform_conv as conv_inputs
from tests.layers.operators import deform_roi_pool as deform_pool_inputs
from tests.layers.operators import ps_roi_pool as ps_pool_inputs
from tests.layers.operators.soft_nms import make_boxes, make_scores
from tests.layers.rois import ROIS, SCALE

ROOT = Path(__file__).parents[2]

# Of torch 2.9 and later.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")


def results_and_gradients(function, tensors):
    """Of function(*tensors): its results, and the gradients of those tensors that require them."""
    tensors = [t.detach().requires_grad_(t.requires_grad) for t in tensors]
    out = function(*tensors)
    out = out if isinstance(out, tuple) else (out,)
    wanted = [t for t in tensors if t.requires_grad]
    if isinstance(function, nn.Module | torch.jit.ScriptModule):
        wanted += function.parameters()
    loss = sum(t.sin().sum() for t in out if t.requires_grad)
    grads = torch.autograd.grad(loss, wanted) if wanted else ()
    assert all(grad.abs().sum() > 0 for grad in grads)
    return out, grads


def saved_and_loaded(script):
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def check(function, *tensors):
    """The script of a function or module gives what it gives itself, also when it was saved."""
    expected = results_and_gradients(function, tensors)
    script = torch.jit.script(function)
    for scripted in (script, saved_and_loaded(script)):
        for _ in range(3):
            assert_close(results_and_gradients(scripted, tensors), expected, rtol=1e-12, atol=1e-14)


def check_call(function, **arguments):
    """The same for one call of a function, in which arguments are passed by name."""
    names = [n for n, t in arguments.items() if isinstance(t, Tensor)]
    tensors = [arguments[name] for name in names]

    def call(of, arguments):
        return lambda *tensors: of(**arguments | dict(zip(names, tensors)))

    expected = results_and_gradients(call(function, arguments), tensors)
    script = torch.jit.script(function)
    # The file of a function, other than that of a module, has no default values.
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    calls = [call(script, arguments), call(saved_and_loaded(script), bound.arguments)]
    for scripted in calls:
        for _ in range(3):
            actual = results_and_gradients(scripted, tensors)
            assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_all_functions_and_modules_are_here():
    """But for those that change a model."""
    missing = set(dcn_projects.layers.__all__) - {"hook_offsets", "deformable"} - set(globals())
    assert not missing


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(modulated=False, stride=2, legacy_border=True),
        dict(stride=(2, 1), padding=[0, 2], dilation=[1, 2]),
        dict(N=0),
    ],
    ids=str,
)
def test_deform_conv(options):
    inputs = conv_inputs.make_inputs(size=(6, 5), **options)
    if options.get("N") == 0:
        inputs = {k: t.detach() if isinstance(t, Tensor) else t for k, t in inputs.items()}
    check_call(deform_conv, **inputs)


def test_deform_conv_without_bias():
    check_call(deform_conv, **conv_inputs.make_inputs(size=(6, 5)) | {"bias": None})


@pytest.mark.parametrize(
    "options",
    [dict(), dict(masks=0, group_size=[3, 3]), dict(classes=0), dict(masks=4, output_size=(3, 2))],
    ids=str,
)
def test_deform_roi_pool(options):
    check_call(deform_roi_pool, **deform_pool_inputs.make_inputs(**options))


@pytest.mark.parametrize(
    "options",
    [dict(), dict(output_size=[4, 6], group_size=(2, 3)), dict(output_size=(3, 2))],
    ids=str,
)
def test_ps_roi_pool(options):
    check_call(ps_roi_pool, **ps_pool_inputs.make_inputs(**options))


def test_numbers_for_pairs():
    check_call(ps_roi_pool, **ps_pool_inputs.make_inputs() | {"output_size": 3, "group_size": 3})
    inputs = deform_pool_inputs.make_inputs(masks=0)
    check_call(deform_roi_pool, **inputs | {"output_size": 2, "group_size": 1, "gamma": 0.2})


NMS_NUMBERS = [
    dict(),
    dict(method="linear", iou_threshold=0.1, score_threshold=0.2),
    dict(method="hard", max_per_class=3),
    dict(sigma=0.2),
]


@pytest.mark.parametrize("numbers", NMS_NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_soft_nms(numbers, dtype):
    boxes, scores = make_boxes(50, dtype=dtype), make_scores(50, dtype=dtype)
    check_call(soft_nms, boxes=boxes, scores=scores, **numbers)
    idxs = torch.arange(50) % 7 * 3 - 6
    check_call(batched_soft_nms, boxes=boxes, scores=scores, idxs=idxs, **numbers)
    scores = make_scores(50, 4, dtype=dtype)
    check_call(multiclass_soft_nms, boxes=boxes, scores=scores, **numbers)
    check_call(multiclass_soft_nms, boxes=boxes.repeat(1, 4), scores=scores, **numbers)


def test_soft_nms_of_no_boxes():
    none, scores = torch.zeros(0, 4), torch.zeros(0)
    check_call(soft_nms, boxes=none, scores=scores)
    check_call(batched_soft_nms, boxes=none, scores=scores, idxs=torch.zeros(0, dtype=torch.int64))
    check_call(multiclass_soft_nms, boxes=none, scores=torch.zeros(0, 3))


def tensor(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(norm=nn.BatchNorm2d(6), activation=nn.ReLU(), groups=2),
        dict(activation=F.leaky_relu, stride=2, legacy_border=True),
        dict(activation=torch.tanh, dilation=(2, 1)),
    ],
    ids=str,
)
def test_modules_of_deform_conv(options):
    torch.manual_seed(0)
    kinds = [(DeformConv, [18]), (ModulatedDeformConv, [18, 9])]
    for make, channels in kinds:
        conv = make(4, 6, 3, padding=1, bias=True, **options).double()
        size = F.conv2d(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 3, 3), None, conv.stride, 1,
                        conv.dilation).shape[2:]  # fmt: skip
        check(conv, tensor(2, 4, 9, 8), *(tensor(2, c, *size) for c in channels))
    for modulated in (False, True):
        conv = DeformableConv2d(4, 6, 3, modulated=modulated, padding=1, **options).double()
        nn.init.normal_(conv.conv_offset.weight, std=0.1)
        check(conv, tensor(2, 4, 9, 8))


def test_modules_of_roi_pooling():
    torch.manual_seed(0)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    check(PSROIPool((3, 2), SCALE), tensor(2, 12, 9, 8), rois)
    check(PSROIPool(4, SCALE, group_size=2), tensor(2, 12, 9, 8), rois)
    pool = DeformROIPool(3, SCALE, gamma=0.3, group_size=3)
    check(pool, tensor(2, 18, 9, 8), rois)
    check(pool, tensor(2, 18, 9, 8), rois, tensor(len(rois), 4, 3, 3))
    check(pool, tensor(2, 18, 9, 8), rois, tensor(len(rois), 4, 3, 3), tensor(len(rois), 1, 3, 3))


class Head(nn.Module):
    """Modules in a module, and functions that are called with fixed arguments."""

    def __init__(self):
        super().__init__()
        convs = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 36, 1))
        self.convs = deformable(convs, select="0", modulated=True, groups=2)
        self.conv = DeformConv(36, 36, 3, activation=F.relu)
        self.pool = PSROIPool(3, SCALE)
        self.deform_pool = DeformROIPool(output_size=3, spatial_scale=SCALE, group_size=3)
        self.offset = nn.Linear(36, 18)
        self.stride = (2, 1)

    def forward(self, x: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(x)
        offset = x[:, :18] * 0.1
        x = deform_conv(x, offset, self.conv.weight, padding=1, stride=[1, 1], legacy_border=True)
        offset = self.offset(self.pool(x, rois).flatten(1)).view(-1, 2, 3, 3)
        pooled = self.deform_pool(x, rois, offset).mean([2, 3])
        pooled = pooled + deform_roi_pool(x, rois, None, 3, 0.25, group_size=3).mean([2, 3])
        smaller = deform_conv(
            x, offset=x.new_zeros(2, 2, 5, 8), weight=x.new_ones(3, 36, 1, 1), stride=self.stride
        )
        scores = multiclass_soft_nms(rois[:, 1:], pooled.sigmoid(), "linear", iou_threshold=0.2)
        keep, best = soft_nms(rois[:, 1:], scores[:, 0], sigma=0.3)
        kept, _ = batched_soft_nms(rois[:, 1:], scores[:, 1], rois[:, 0].long(), max_per_class=2)
        return pooled[keep] * best[:, None] + pooled[kept].sum(), smaller


def test_in_a_scripted_model():
    torch.manual_seed(0)
    model = Head().double()
    nn.init.normal_(model.convs[0].conv_offset.weight, std=0.1)
    model.conv.weight.detach().mul_(0.1)
    model.conv.bias = None
    check(model, tensor(2, 4, 9, 8), torch.tensor(ROIS, dtype=torch.float64))


def test_frozen_model():
    torch.manual_seed(0)
    model = deformable(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    x, frozen = torch.randn(1, 4, 9, 8), torch.jit.freeze(torch.jit.script(model))
    for _ in range(3):
        assert_close(frozen(x), model(x))


def test_autocast():
    torch.manual_seed(0)
    model = DeformableConv2d(4, 6, 3, modulated=True)
    nn.init.normal_(model.conv_offset.weight, std=0.1)
    script, x = torch.jit.script(model), torch.randn(2, 4, 9, 8)
    pool = torch.jit.script(deform_roi_pool)
    inputs = deform_pool_inputs.make_inputs(dtype=torch.float32)
    inputs["offset"] = inputs["offset"].detach().bfloat16()
    for _ in range(3):  # off and on in turn, with one script
        assert_close(script(x), model(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert script(x).dtype == torch.bfloat16
            assert_close(script(x), model(x))
            assert_close(pool(**inputs), deform_roi_pool(**inputs))
            double = conv_inputs.make_inputs(size=(6, 5))
            assert_close(torch.jit.script(deform_conv)(**double), deform_conv(**double))
        with torch.autocast("cpu", torch.float16):
            assert script(x).dtype == torch.float16


def test_errors_quote_what_came():
    x, rois = torch.zeros(1, 4, 9, 8), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match=r"offset must be \(1, 2\*G\*1, 9, 8\), got \[1, 3, 9"):
        torch.jit.script(deform_conv)(x, torch.zeros(1, 3, 9, 8), torch.zeros(4, 4, 1, 1))
    mask = torch.zeros(2, 3, 2, 2)
    with pytest.raises(
        torch.jit.Error, match=r"mask must be \(2, m, 2, 2\), .* got \[2, 3, 2, 2\]"
    ):
        torch.jit.script(deform_roi_pool)(x, rois, None, 2, 1.0, mask=mask)
    with pytest.raises(torch.jit.Error, match=r"idxs \(N,\), got \[2, 4\] and \[3\]"):
        torch.jit.script(batched_soft_nms)(torch.zeros(2, 4), torch.zeros(2), torch.zeros(3))
    with pytest.raises(torch.jit.Error, match=r"boxes \(R, 4\) or .* got \[2, 3\] and \[2, 8\]"):
        torch.jit.script(multiclass_soft_nms)(torch.zeros(2, 8), torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="Expected 2 elements in a list but found 3"):
        torch.jit.script(ps_roi_pool)(x, rois, [2, 2, 2], 1.0)


PROGRAM = """
import sys, torch
import dcn_projects.layers
script = torch.jit.load(sys.argv[1])
print(script(torch.ones(1, 4, 9, 8)).sum().item())
"""


def test_loads_in_another_process(tmp_path):
    torch.manual_seed(0)
    model = DeformableConv2d(4, 6, 3, modulated=True, activation=F.relu)
    torch.jit.script(model).save(tmp_path / "model.pt")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, tmp_path / "model.pt"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    expected = model(torch.ones(1, 4, 9, 8)).sum().item()
    assert float(result.stdout or "nan") == pytest.approx(expected), result.stderr
