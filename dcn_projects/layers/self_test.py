"""
A small test of each operator on any machine, without another implementation to compare with: each
operator's module has one under the name SELF_TEST. `python -m dcn_projects.collect_env` runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library

TestFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SelfTest:
    """
    Two functions of x (2, 8, 16, 16), move (2,), which is (y, x) in cells from 0 to 1, and weight
    (5, 8, 3, 3), that give the same: one calls the operator, the other plain PyTorch. An argument
    that the operator does not need is ignored by both.
    """

    operator: TestFunction
    expected: TestFunction

    def run(self, device: str) -> str:
        """
        Returns:
            str: "ok" if result and gradients of the operator are right in float32, else what is not
        """
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(*s, generator=generator) for s in [(2, 8, 16, 16), (5, 8, 3, 3)])
        tensors = [x, torch.tensor([0.25, 0.625]), weight]
        expected = _result_and_gradients(self.expected, [t.double() for t in tensors])
        try:
            actual = _result_and_gradients(self.operator, [t.clone().to(device) for t in tensors])
        except RuntimeError as error:
            return f"FAILED: {error}"
        names = ("result", "gradient of input", "gradient of offset", "gradient of weight")
        for what, a, e in zip(names, actual, expected):
            if e is None:
                continue
            if a is None:
                return f"FAILED: there is no {what}"
            if not torch.allclose(a, e, rtol=0, atol=1e-4 * e.abs().max().item()):
                return f"FAILED: {what} is off by {(a - e).abs().max():.2g} of {e.abs().max():.2g}"
        return "ok"


def _result_and_gradients(function: TestFunction, tensors: list[Tensor]) -> list[Tensor | None]:
    tensors = [t.requires_grad_() for t in tensors]
    out = function(*tensors)
    grads = torch.autograd.grad(out.sin().sum(), tensors, allow_unused=True)
    return [None if t is None else t.detach().cpu().double() for t in (out, *grads)]


def self_tests() -> dict[str, SelfTest]:
    """Those of all operators, by name."""
    return {
        name: import_module(f".{name}", __package__).SELF_TEST for name in library.PUBLIC_OPERATORS
    }


def moved(x: Tensor, move: Tensor) -> Tensor:
    """
    x at (y, x) + move, bilinearly, with zeros behind the last row and column: where all offsets are
    the same, a deformable operator is a plain one on a map that has been moved.
    """
    x = F.pad(x, (0, 1, 0, 1))
    x = x[..., :-1, :] * (1 - move[0]) + x[..., 1:, :] * move[0]
    return x[..., :-1] * (1 - move[1]) + x[..., 1:] * move[1]
