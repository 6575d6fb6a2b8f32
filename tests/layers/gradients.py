"""
Gradients of the operators in float64 against central differences: every entry of the Jacobian of
each input that has gradients.

    python -m tests.layers.gradients --device cuda        # prints one table
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import dcn_projects.layers
from dcn_projects.layers import deformable
from tests.layers import operators

# Inputs are changed by this; they are further off the places where derivatives jump, between which
# the operators are linear in each number. What is left is rounding: some 1e-16 of a result, divided
# by the step, and where offsets depend on the input the third derivative, some 1e-12.
STEP = 2.0**-20
TOLERANCE = 1e-8


@dataclass
class Case:
    """`function` of the tensors in `inputs`, by name, all of which get gradients."""

    what: str
    function: Callable[..., Tensor]
    inputs: dict[str, Tensor]

    def errors(self) -> dict[str, tuple[float, float]]:
        """
        Returns:
            dict: name of an input -> largest error of an entry of its Jacobian, and the largest
                entry
        """
        tensors = list(self.inputs.values())
        analytic, errors = jacobian(self._of_list, tuple(tensors)), {}
        for i, name in enumerate(self.inputs):
            numeric = torch.stack(list(self._differences(tensors, i)), dim=-1)
            error = (analytic[i].reshape(numeric.shape) - numeric).abs().max()
            errors[name] = error.item(), numeric.abs().max().item()
        return errors

    def _of_list(self, *tensors: Tensor) -> Tensor:
        return self.function(**dict(zip(self.inputs, tensors, strict=True)))

    def outputs(self) -> int:
        return self.function(**self.inputs).numel()

    def _differences(self, tensors: list[Tensor], i: int) -> Iterator[Tensor]:
        changed = tensors[i].clone()
        tensors = [*tensors[:i], changed, *tensors[i + 1 :]]
        for k, value in enumerate(changed.flatten().tolist()):
            results = []
            for sign in (1, -1):
                changed.view(-1)[k] = value + sign * STEP
                results.append(self._of_list(*tensors))
            changed.view(-1)[k] = value
            yield (results[0] - results[1]) / (2 * STEP)


def cases(device: str) -> list[Case]:
    return [*operator_cases(device), *module_cases(device)]


def operator_cases(device: str) -> Iterator[Case]:
    for name, kinds in operators.having("GRADIENT_CASES").items():
        function = getattr(dcn_projects.layers, name)
        for kind, options in kinds.items():
            inputs = operators.module(name).make_inputs(device, **options)
            tensors = {k: t.detach() for k, t in inputs.items() if has_gradient(t)}
            rest = {k: v for k, v in inputs.items() if k not in tensors}
            yield Case(f"{name}, {kind}", functools.partial(function, **rest), tensors)


def has_gradient(value) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def module_cases(device: str) -> Iterator[Case]:
    """The offsets come from the input: through both of its ways."""
    for modulated in (False, True):
        torch.manual_seed(0)
        module = deformable(nn.Conv2d(2, 3, 3, padding=1), modulated=modulated, groups=2)
        nn.init.normal_(module.conv_offset.weight, std=0.1)
        nn.init.uniform_(module.conv_offset.bias, 0.4, 0.6)
        module.to(device, torch.float64)
        x = torch.rand(1, 2, 3, 4, dtype=torch.float64) - 0.5
        yield Case(
            f"DeformableConv2d, {'modulated' if modulated else 'plain'}",
            lambda x, module=module, **parameters: torch.func.functional_call(
                module, {k.replace("/", "."): p for k, p in parameters.items()}, (x,)
            ),
            {"x": x.to(device)}
            | {k.replace(".", "/"): p.detach() for k, p in module.named_parameters()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Gradients of the operators, as one table.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    device = parser.parse_args().device
    print("| what | with respect to | entries | tolerance | max error |")
    print("| --- | --- | --- | --- | --- |")
    for case in cases(device):
        names = ", ".join(case.inputs).replace("/", ".")
        entries = sum(t.numel() for t in case.inputs.values()) * case.outputs()
        error = max(error for error, _ in case.errors().values())
        print(f"| {case.what} | {names} | {entries} | {TOLERANCE:.0e} | {error:.1e} |")


if __name__ == "__main__":
    main()
