from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .deform_conv import deform_conv

_PLAIN = nn.Conv2d, Conv2d


class DeformableConv2d(Conv2d):
    """
    A Conv2d that `deformable`, and nothing else, has made deformable (arXiv 1703.06211, Sec. 2.1)
    or modulated deformable (arXiv 1811.11168, Sec. 3.2), with its parameters under their old names.

    `conv_offset`, a convolution of the same input with the same geometry, predicts offsets, and
    below them, if it is modulated, logits of the mask. It starts at zero, and the mask is twice
    their sigmoid, as in the authors' code: the layer starts as the plain convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W)
        Returns:
            Tensor: (N, out_channels, Ho, Wo), after norm and activation where the Conv2d has them
        """
        predicted, mask = self.conv_offset(x), None
        offset = predicted[:, : self.offset_channels]
        if self.modulated:
            mask = 2 * predicted[:, self.offset_channels :].sigmoid()
        x = deform_conv(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, modulated={self.modulated}, "
            f"deformable_groups={self.deformable_groups}"
        )


def deformable(
    module: nn.Module,
    select: str | Sequence[str] = "*",
    modulated: bool = False,
    groups: int = 1,
) -> nn.Module:
    """
    Make convolutions of a model deformable, in place. Outputs stay what they are until the offsets
    have learnt something. The state dict keeps its names and gets `<name>.conv_offset.weight` and
    `.bias`, so that checkpoints of the plain model load with strict=False. Both learn, even where
    the convolution itself is frozen.

    The modules remain the same objects: hooks, and lists that hold them without registering them,
    as detectron2's FPN has, see the deformable ones. An optimizer has to be built afterwards.

    Args:
        module: a model, or a single Conv2d of torch.nn or of detectron2.layers, with any kernel,
            stride, dilation, groups and bias, norm and activation
        select: patterns of names in `module.named_modules()`, in which * stands for any characters,
            dots too ("*.res5.*.conv2"). Of the modules that match, those are taken that convolve;
            "*" alone takes every Conv2d of torch.nn or detectron2.layers that does not itself
            predict offsets, and leaves the others
        modulated: learn a mask in [0, 2] for every sample
        groups: channel groups with offsets of their own  # deformable_groups
    Returns:
        nn.Module: `module`
    Raises:
        ValueError: if a pattern matches no convolution, or one that cannot be deformable; then
            nothing has changed
    """
    patterns = [select] if isinstance(select, str) else list(select)
    chosen, unused = {}, set(patterns)
    for name, child in module.named_modules(remove_duplicate=False):
        matches = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
        if patterns == ["*"] and child is not module:
            is_meant = type(child) in _PLAIN and not name.endswith("_offset")
        else:
            is_meant = _convolves(child)
        if matches and is_meant:
            unused -= matches
            chosen[child] = name
    if unused or not chosen:
        raise ValueError(f"deformable: no convolution has a name that matches {sorted(unused)}")
    for conv, name in chosen.items():
        _check(conv, name, groups)
    for conv in chosen:
        _make_deformable(conv, modulated, groups)
    return module


def _convolves(module: nn.Module) -> bool:
    weight = None if isinstance(module, _ConvNd) else getattr(module, "weight", None)
    return isinstance(module, _ConvNd) or (isinstance(weight, Tensor) and weight.dim() == 4)


def _check(conv: nn.Module, name: str, groups: int) -> None:
    problem = None
    if type(conv) is DeformableConv2d:
        problem = "is deformable already"
    elif type(conv) not in _PLAIN:
        problem = f"is a {type(conv).__name__}, not a Conv2d of torch.nn or detectron2.layers"
    elif conv.padding_mode != "zeros":
        problem = f"has padding_mode {conv.padding_mode}, not zeros"
    elif conv.padding == "same" and any(total % 2 for total in _span(conv)):
        problem = f"has a kernel of {conv.kernel_size}, for which 'same' pads one side more"
    elif groups < 1 or conv.in_channels % groups:
        problem = f"has {conv.in_channels} channels, which do not divide into {groups} groups"
    if problem:
        raise ValueError(f"deformable: {name or 'the module'} {problem}")


def _span(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns between the first and the last tap."""
    return tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size))


def _make_deformable(conv: nn.Conv2d, modulated: bool, groups: int) -> None:
    norm, activation = getattr(conv, "norm", None), getattr(conv, "activation", None)
    conv.__class__ = DeformableConv2d
    conv.norm, conv.activation = norm, activation
    if isinstance(conv.padding, str):
        conv.padding = tuple(n // 2 if conv.padding == "same" else 0 for n in _span(conv))
    conv.modulated, conv.deformable_groups = modulated, groups
    conv.offset_channels = 2 * groups * conv.kernel_size[0] * conv.kernel_size[1]
    conv.conv_offset = nn.Conv2d(
        conv.in_channels,
        conv.offset_channels * 3 // 2 if modulated else conv.offset_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    ).train(conv.training)
    with torch.no_grad():
        conv.conv_offset.weight.zero_()
        conv.conv_offset.bias.zero_()
