"""Each private name of PyTorch that transforms.py needs, missing, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcn_projects.layers import checks

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "dcn_projects/layers/transforms.py").read_text()
NAMES = re.findall(r'^ +"(torch\.[\w.]*\b_\w+[\w.]*)",$', SOURCE, re.M)

PROGRAM = """
import pkgutil, sys, warnings
resolve_name = pkgutil.resolve_name
def without(name):
    if name == sys.argv[1]:
        raise AttributeError(name)
    return resolve_name(name)
pkgutil.resolve_name = without

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from dcn_projects.layers import deform_conv, deform_roi_pool, ps_roi_pool
texts = [str(w.message) for w in caught if "torch.func refuses" in str(w.message)]
assert len(texts) == 1 and sys.argv[1] in texts[0], texts

import torch
def tensor(*shape):
    return torch.rand(*shape, dtype=torch.float64).requires_grad_()

x, offset, weight = tensor(1, 2, 4, 4), tensor(1, 18, 2, 2), tensor(3, 2, 3, 3)
rois, moves = torch.tensor([[0.0, 0, 0, 3, 3]]).double(), tensor(1, 2, 2, 2)
assert torch.autograd.gradcheck(deform_conv, (x, offset, weight))
assert torch.autograd.gradcheck(lambda x: ps_roi_pool(x, rois, 1, 1.0), x)
assert torch.autograd.gradcheck(lambda x, m: deform_roi_pool(x, rois, m, 2, 1.0), (x, moves))

def loss(x):
    return deform_conv(x, offset, weight).square().sum()

(grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
for refused in (lambda: torch.func.grad(loss)(x), lambda: torch.autograd.grad(grad.sum(), x)):
    try:
        refused()
    except RuntimeError as error:
        print("refused:", error)

# The function and each of its arguments that is differentiable.
for function, tensors in (
    (deform_conv, (x, offset, weight)),
    (lambda x: ps_roi_pool(x, rois, 1, 1.0), (x,)),
    (lambda x, m: deform_roi_pool(x, rois, m, 2, 1.0), (x, moves)),
):
    tensors = [t.detach() for t in tensors]
    for k, t in enumerate(tensors):
        def of_one(t):
            return function(*tensors[:k], t, *tensors[k + 1 :])
        jvp = lambda t: torch.func.jvp(of_one, (t,), (t,))
        for forward in (jvp, torch.func.jacfwd(of_one)):
            try:
                forward(t)
            except RuntimeError as error:
                print("no tangent:", error)
compiled = torch.compile(deform_conv, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(x, offset, weight), deform_conv(x, offset, weight))
"""


def test_checks_without_the_function_of_torch(monkeypatch):
    monkeypatch.setattr(checks, "check", checks._raise_unless)
    boxes, scores, starts = torch.zeros(3, 4), torch.zeros(3), torch.tensor([0, 3])
    numbers = ("hard", 0.5, 0.3, 0.0, None)
    checks.check_soft_nms(boxes, scores, starts, *numbers)
    with pytest.raises(RuntimeError, match=r"boxes must be \(B, 4\).* got \[3, 3\]"):
        checks.check_soft_nms(boxes[:, :3], scores, starts, *numbers)


def test_the_names_are_found():
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_without_a_private_name(name):
    command = [sys.executable, "-c", PROGRAM, name]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused:") == 2, result.stdout
    assert "deform_conv has no second derivative" in result.stdout
    for function, arguments in (("deform_conv", 3), ("ps_roi_pool", 1), ("deform_roi_pool", 2)):
        text = f"no tangent: {function} has no forward-mode derivative"
        assert result.stdout.count(text) == 2 * arguments, result.stdout  # jvp and jacfwd
