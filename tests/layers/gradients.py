"""
Gradients of the operators in float64 against central differences: every entry of the Jacobian of
each input that has gradients.

    python -m tests.layers.gradients --device cuda        # prints one table
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from dcn_projects.layers import deform_conv, deform_roi_pool, deformable, ps_roi_pool
from tests.layers import test_deform_conv as conv
from tests.layers import test_deform_roi_pool as deform_roi
from tests.layers import test_ps_roi_pool as ps_roi
from tests.layers.rois import ROIS

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


def split(inputs: dict, names: list[str]) -> tuple[dict, dict]:
    """Arguments that get gradients, and the others."""
    tensors = {k: inputs[k].detach() for k in names if inputs.get(k) is not None}
    return tensors, {k: v for k, v in inputs.items() if k not in tensors}


def cases(device: str) -> list[Case]:
    return [*conv_cases(device), *module_cases(device), *pool_cases(device)]


def conv_cases(device: str) -> Iterator[Case]:
    small = dict(N=1, C=4, out_channels=2, size=(4, 3))
    kinds = {
        "modulated": {},
        "plain": dict(modulated=False),
        "kernel 2 x 2": dict(modulated=False, kernel=(2, 2), padding=0),
        "stride 2, 2 groups, 2 deformable": dict(stride=2, groups=2, deformable_groups=2),
        "2 groups, 4 deformable": dict(modulated=False, groups=2, deformable_groups=4),
        "2 groups, 3 deformable": dict(C=6, groups=2, deformable_groups=3, size=(2, 2)),
        "depthwise": dict(groups=4, out_channels=4, N=2, size=(2, 3)),
        "oblong geometry": dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        "in the band around the map": dict(size=(2, 2), reach=1),
    }
    for kind, options in kinds.items():
        for legacy_border in (False, True):
            tensors, rest = split(conv.make_inputs(device, **{**small, **options}), conv.TENSORS)
            rest["legacy_border"] = legacy_border
            border = ", border of 2017" if legacy_border else ""
            yield Case(
                f"deform_conv, {kind}{border}",
                lambda rest=rest, **tensors: deform_conv(**tensors, **rest),
                tensors,
            )


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


def pool_cases(device: str) -> Iterator[Case]:
    for kind, options in {
        "group of its bins": dict(output_size=(2, 2)),
        "3 x 2 bins, group 2 x 3": dict(output_size=(3, 2), group_size=(2, 3), D=1),
    }.items():
        tensors, rest = split(
            ps_roi.make_inputs(device, **{"D": 2, "size": (5, 4), **options}), ["input"]
        )
        yield Case(
            f"ps_roi_pool, {kind}", lambda input, rest=rest: ps_roi_pool(input, **rest), tensors
        )
    small = dict(D=2, size=(5, 4), output_size=(2, 2), part=(2, 2))
    for kind, options in {
        "modulated": {},
        "mask per channel": dict(masks=2, classes=1),
        "no offsets": dict(classes=0, masks=0),
        "offsets shared": dict(classes=1, masks=0),
        "position-sensitive": dict(classes=1, group_size=(2, 2), sampling_ratio=4, masks=0),
        "position-sensitive, modulated": dict(D=1, classes=1, group_size=(2, 2)),
        "4 x 2 bins of 2 x 1 parts": dict(output_size=(4, 2), part=(2, 1), rois=ROIS[:4]),
    }.items():
        inputs = deform_roi.make_inputs(device, **{**small, **options})
        tensors, rest = split(inputs, deform_roi.TENSORS)
        yield Case(
            f"deform_roi_pool, {kind}",
            lambda rest=rest, **tensors: deform_roi_pool(**tensors, **rest),
            tensors,
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
