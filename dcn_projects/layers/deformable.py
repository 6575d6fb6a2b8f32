"""Convolutions that predict the offsets, and the mask, of their own samples."""

import functools
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .deform_conv import check_convolution, deform_conv
from .norm_activation import NormAndActivation
from .pair import IntPair, pair

# How the weights of the layer that predicts the offsets start. With "zeros" the layer starts as the
# plain convolution; the other is that of the authors' code of Dynamic R-CNN.
OFFSET_INITS = {
    "zeros": nn.init.zeros_,
    "kaiming_uniform": functools.partial(nn.init.kaiming_uniform_, a=1),
}
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class DeformableConv2d(NormAndActivation, nn.Conv2d):
    """
    A Conv2d that is deformable (arXiv 1703.06211, Sec. 2.1) or modulated deformable (arXiv
    1811.11168, Sec. 3.2): `conv_offset`, a convolution of the same input with the same geometry,
    predicts the offsets, and below them, if it is modulated, the logits of the mask. `weight`,
    `bias` and `norm` have the names that they have in the Conv2d of torch.nn or of detectron2.

    The function `deformable` turns convolutions of a model into these, in place.
    """

    __constants__ = [*NormAndActivation.__constants__, *nn.Conv2d.__constants__]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair,
        stride: IntPair = 1,
        padding: IntPair | str = 0,
        dilation: IntPair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        deformable_groups: int = 1,
        modulated: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        legacy_border: bool = False,
        mask_scale: float = 2.0,
        offset_init: str = "zeros",
        dilated_offset: bool = True,
    ):
        """
        Args:
            in_channels, ..., bias: as in `nn.Conv2d`; padding may be "same" or "valid"
            deformable_groups: number of channel groups with offsets of their own
            modulated: learn a mask in [0, mask_scale] for every sample
            norm, activation: applied to the result, in this order
            legacy_border: see `deform_conv`
            mask_scale: factor of the mask, which starts as sigmoid(0) = 0.5. With 2, as in the
                authors' code, the layer starts as the plain convolution; with 1, as in the paper,
                as half of it
            offset_init: how the weights of `conv_offset` start, "zeros" or "kaiming_uniform"
            dilated_offset: where the convolution is dilated, `conv_offset` is dilated as well
        Raises:
            ValueError: if a number is not positive (padding: negative), if channels do not divide,
                or if a convolution with these numbers cannot be deformable
        """
        check_convolution(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if isinstance(padding, str) else padding,
            dilation,
            groups,
            deformable_groups,
        )
        super().__init__(
            in_channels,
            out_channels,
            pair(kernel_size),
            pair(stride),
            padding if isinstance(padding, str) else pair(padding),
            pair(dilation),
            groups,
            bias,
        )
        problem = _problem(self, deformable_groups)
        if problem:
            raise ValueError(f"a deformable convolution {problem}")
        self.norm, self.activation = norm, activation
        self._predict_offsets(
            modulated, deformable_groups, legacy_border, mask_scale, offset_init, dilated_offset
        )
        super().reset_parameters()

    def _predict_offsets(
        self,
        modulated: bool,
        deformable_groups: int,
        legacy_border: bool = False,
        mask_scale: float = 2.0,
        offset_init: str = "zeros",
        dilated_offset: bool = True,
    ) -> None:
        """What makes a Conv2d deformable; the arguments are those of the constructor."""
        if offset_init not in OFFSET_INITS:
            raise ValueError(f"offset_init is {offset_init}, expected one of {list(OFFSET_INITS)}")
        if isinstance(self.padding, str):
            self.padding = tuple(n // 2 if self.padding == "same" else 0 for n in _span(self))
        padding, dilation = self.padding, self.dilation
        if not dilated_offset:
            # The map of the offsets keeps the size of the result.
            dilation = (1, 1)
            excess = [(d - 1) * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            padding = tuple(p - n // 2 for p, n in zip(self.padding, excess))
            if min(padding) < 0 or any(n % 2 for n in excess):
                raise ValueError(
                    f"an undilated convolution does not give offsets of the size of a result with "
                    f"kernel {self.kernel_size}, padding {self.padding}, dilation {self.dilation}"
                )
        self.modulated, self.deformable_groups = modulated, deformable_groups
        self.legacy_border, self.mask_scale, self.offset_init = (
            legacy_border,
            mask_scale,
            offset_init,
        )
        self.offset_channels = 2 * deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = nn.Conv2d(
            self.in_channels,
            self.offset_channels * 3 // 2 if modulated else self.offset_channels,
            self.kernel_size,
            self.stride,
            padding,
            dilation,
            device=self.weight.device,
            dtype=self.weight.dtype,
        ).train(self.training)
        self._start_offsets()

    def _start_offsets(self) -> None:
        OFFSET_INITS[self.offset_init](self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        # The constructor of Conv2d calls this before there is a conv_offset. Its weights are drawn
        # first, so that a seed gives the networks that it always gave.
        if hasattr(self, "conv_offset"):
            self.conv_offset.reset_parameters()
            self._start_offsets()
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W)
        Returns:
            Tensor: (N, out_channels, Ho, Wo), after norm and activation where there are any
        """
        predicted = self.conv_offset(x)
        offset = predicted[:, : self.offset_channels]
        mask: Tensor | None = None
        if self.modulated:
            mask = self.mask_scale * predicted[:, self.offset_channels :].sigmoid()
        x = deform_conv(
            x,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            self.legacy_border,
        )
        return self._norm_and_activate(x)

    def extra_repr(self) -> str:
        text = (
            f"{super().extra_repr()}, modulated={self.modulated}, "
            f"deformable_groups={self.deformable_groups}"
        )
        if self.modulated and self.mask_scale != 2:
            text += f", mask_scale={self.mask_scale}"
        return text + (", legacy_border=True" if self.legacy_border else "")


def deformable(
    module: nn.Module,
    select: str | Sequence[str] = "*",
    modulated: bool = False,
    groups: int = 1,
    *,
    mask_scale: float = 2.0,
) -> nn.Module:
    """
    Make convolutions of a model deformable, in place. Outputs stay what they are until the offsets
    have learnt something (but see `mask_scale`). The state dict keeps its names and gets
    `<name>.conv_offset.weight` and `.bias`, so that checkpoints of the plain model load with
    strict=False. Both learn, even where the convolution itself is frozen.

    The modules remain the same objects: hooks, and lists that hold them without registering them,
    as detectron2's FPN has, see the deformable ones. An optimizer has to be built afterwards.

    Args:
        module: a model, or a single Conv2d of torch.nn or of detectron2.layers, with any kernel,
            stride, dilation, groups and bias, norm and activation
        select: patterns of names in `module.named_modules()`, in which * stands for any characters,
            dots too ("*.res5.*.conv2"). Of the modules that match, those are taken that convolve;
            "*" alone takes every Conv2d of torch.nn or detectron2.layers that does not itself
            predict offsets, and leaves the others
        modulated: learn a mask in [0, mask_scale] for every sample
        groups: channel groups with offsets of their own  # deformable_groups
        mask_scale: factor of the mask, which starts as half of it. With 2 the outputs stay what
            they are at first; with 1, as in the paper, a convolution starts as half of itself
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
            is_meant = _is_plain(child) and not name.endswith("_offset")
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
        _adopt(conv, modulated, groups, mask_scale)
    return module


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a Conv2d of torch.nn or detectron2.layers, and of no class derived from it."""
    # Where there is a layer of detectron2, detectron2 has been imported.
    detectron2_layers = sys.modules.get("detectron2.layers")
    return type(module) in (nn.Conv2d, getattr(detectron2_layers, "Conv2d", nn.Conv2d))


def _convolves(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 4


def _check(conv: nn.Module, name: str, groups: int) -> None:
    if type(conv) is DeformableConv2d:
        problem = "is deformable already"
    elif not _is_plain(conv):
        problem = f"is a {type(conv).__name__}, not a Conv2d of torch.nn or detectron2.layers"
    else:
        problem = _problem(conv, groups)
    if problem:
        raise ValueError(f"deformable: {name or 'the module'} {problem}")


def _problem(conv: nn.Conv2d, groups: int) -> str | None:
    """Why it cannot be deformable, None if it can."""
    if conv.padding_mode != "zeros":
        return f"has padding_mode {conv.padding_mode}, not zeros"
    if conv.padding == "same" and any(total % 2 for total in _span(conv)):
        return f"has a kernel of {conv.kernel_size}, for which 'same' pads one side more"
    if groups < 1 or conv.in_channels % groups:
        return f"has {conv.in_channels} channels, which do not divide into {groups} groups"
    return None


def _span(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns between the first and the last tap."""
    return tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size))


def _adopt(conv: nn.Conv2d, modulated: bool, groups: int, mask_scale: float) -> None:
    norm, activation = getattr(conv, "norm", None), getattr(conv, "activation", None)
    conv.__class__ = DeformableConv2d
    conv.norm, conv.activation = norm, activation
    conv._predict_offsets(modulated, groups, mask_scale=mask_scale)
