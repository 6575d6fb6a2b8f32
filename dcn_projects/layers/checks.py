"""
What the operators accept, for the kernels in Python: the fake ones and those of fallback.py. The
compiled ones check the same in csrc/<op>/<op>.h. Sizes may be symbolic: each condition is alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _raise_unless(condition: bool, message: Callable[[], str]) -> None:
    if not condition:
        raise RuntimeError(message())


# Raises RuntimeError(message()) unless the condition holds. While a graph is exported, a condition
# may be symbolic: torch's own function takes such a condition, and bool() does not.
check = getattr(torch, "_check", _raise_unless)

LARGEST_GRID = 1 << 15
LARGEST_MAP = 1 << 24
INT_MAX = (1 << 31) - 1


def check_pair(op: str, name: str, pair: Sequence[int], smallest: int, largest: int) -> None:
    """
    Raises:
        RuntimeError: if a list int[2] of a schema, which may have any length, is not two numbers
            from `smallest` to `largest`
    """
    got = list(pair)
    text = f"{op}: {name} must be two numbers from {smallest} to {largest}, got {got}"
    check(len(got) == 2, lambda: text)
    for value in got:
        check(value >= smallest, lambda: text)
        check(value <= largest, lambda: text)


def _check_known(sizes: Sequence[int], fits: Callable[[], bool], text: str) -> None:
    """
    A check of sizes that are numbers. On symbolic ones it would be a guard, which narrows what can
    be exported; the compiled kernel checks them when it runs.
    """
    if all(isinstance(size, int) for size in sizes):
        check(fits(), lambda: text)


def check_deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """
    Returns:
        list: N, O, Ho, Wo
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit
    """
    shape, kernel = list(input.shape), list(weight.shape)
    check(len(shape) == 4, lambda: f"deform_conv: input must be (N, C, H, W), got {shape}")
    check(
        len(kernel) == 4, lambda: f"deform_conv: weight must be (O, C/groups, kh, kw), got {kernel}"
    )
    dtype, device = input.dtype, input.device
    check(
        dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        lambda: f"deform_conv: input must be float16, bfloat16, float32 or float64, got {dtype}",
    )
    tensors = {"offset": offset, "weight": weight, "mask": mask, "bias": bias}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check(
            tensor.device == device,
            lambda: f"deform_conv: input is on {device} but {name} on {tensor.device}",  # noqa: B023
        )
        wide = dtype.itemsize == 2 and name in ("offset", "mask") and tensor.dtype == torch.float32
        check(
            tensor.dtype == dtype or wide,
            lambda: f"deform_conv: input is {dtype} but {name} {tensor.dtype}",  # noqa: B023
        )

    (N, C, *size), (out_channels, group_size, *taps) = shape, kernel
    check(0 not in kernel, lambda: f"deform_conv: weight is empty, {kernel}")
    check(
        C > 0 and C % group_size == 0,
        lambda: (
            f"deform_conv: input has {C} channels, which is no multiple of the {group_size} "
            f"of weight {kernel}"
        ),
    )
    groups = C // group_size
    check(
        out_channels % groups == 0,
        lambda: (
            f"deform_conv: the {out_channels} output channels of weight {kernel} do not divide "
            f"into {groups} groups"
        ),
    )
    check_pair("deform_conv", "stride", stride, 1, INT_MAX)
    check_pair("deform_conv", "padding", padding, 0, INT_MAX)
    check_pair("deform_conv", "dilation", dilation, 1, INT_MAX)
    sides = [*size, *taps]
    _check_known(
        sides,
        lambda: max(sides) <= INT_MAX,
        "deform_conv: the sides of input and weight must be less than 2^31, got "
        f"{shape} and {kernel}",
    )
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (taps[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    for i in range(2):
        for length in (size[i], out[i]):
            check(
                length > 0,
                lambda: (
                    "deform_conv: convolution input is too small (output would be "
                    f"{max(out[0], 0)} x {max(out[1], 0)}) for input {shape} and weight {kernel}"
                ),
            )

    _check_known(
        size,
        lambda: size[0] + 2 * padding[0] + 2 < INT_MAX // (size[1] + 2 * padding[1] + 2),
        f"deform_conv: one padded map must have less than 2^31 pixels, got {shape} with padding "
        f"{list(padding)}",
    )

    K, got = taps[0] * taps[1], list(offset.shape)
    check(
        len(got) == 4 and got[1] > 0 and got[1] % (2 * K) == 0,
        lambda: f"deform_conv: offset must be ({N}, 2*G*{K}, {out[0]}, {out[1]}), got {got}",
    )
    for size, expected in zip([got[0], *got[2:]], [N, *out]):
        check(
            size == expected,
            lambda: f"deform_conv: offset must be ({N}, 2*G*{K}, {out[0]}, {out[1]}), got {got}",
        )
    G = got[1] // (2 * K)
    check(
        C % G == 0,
        lambda: (
            f"deform_conv: offset {got} stands for {G} deformable groups, into which {C} "
            "channels cannot be divided"
        ),
    )
    if mask is not None:
        _check_shape(mask, [N, G * K, *out], "deform_conv: mask", f" to fit offset {got}")
    if bias is not None:
        _check_shape(bias, [out_channels], "deform_conv: bias")
    return [N, out_channels, *out]


def _check_shape(tensor: Tensor, expected: list[int], name: str, why: str = "") -> None:
    got = list(tensor.shape)
    text = f"{name} must be ({', '.join(map(str, expected))}){why}, got {got}"
    check(len(got) == len(expected), lambda: text)
    for size, wanted in zip(got, expected):
        check(size == wanted, lambda: text)


def check_grad(op: str, grad: Tensor, input: Tensor, expected: list[int]) -> None:
    """
    Raises:
        RuntimeError: if the gradient of a result does not fit it
    """
    _check_shape(grad, expected, f"{op}: grad")
    check(
        grad.dtype == input.dtype and grad.device == input.device,
        lambda: (
            f"{op}: grad must be {input.dtype} on {input.device}, got {grad.dtype} on {grad.device}"
        ),
    )


def check_roi_pool(
    op: str,
    input_shape: Sequence[int],
    like_input: Tensor,
    rois: Tensor,
    output_size: Sequence[int],
    spatial_scale: float,
    group_size: Sequence[int],
) -> list[int]:
    """
    Args:
        like_input: a tensor that has the dtype and the device of the input
    Returns:
        list: R, D, height, width
    Raises:
        RuntimeError: if shapes, dtypes or devices do not fit
    """
    dtype, shape = like_input.dtype, list(input_shape)
    text = f"{op}: input must be (N, C, H, W), got {shape}"
    check(len(shape) == 4, lambda: text)
    check(shape[0] >= 0, lambda: text)
    text_of_map = (
        f"{op}: input needs channels, and a map of 1 to 2^31 - 1 cells whose sides are at most "
        f"2^24, got {shape}"
    )
    for size in shape[1:]:
        check(size > 0, lambda: text_of_map)
    H, W = shape[2:]
    _check_known(
        (H, W), lambda: H <= LARGEST_MAP and W <= LARGEST_MAP and H * W <= INT_MAX, text_of_map
    )
    wide = dtype in (torch.float32, torch.float64)
    check(
        wide or dtype in (torch.float16, torch.bfloat16),
        lambda: f"{op}: input must be float16, bfloat16, float32 or float64, got {dtype}",
    )
    got = list(rois.shape)
    check(
        len(got) == 2 and got[1] == 5,
        lambda: f"{op}: rois must be (R, 5): image index, x0, y0, x1, y1; got {got}",
    )
    _check_coordinates(op, "rois", rois, like_input)
    check_pair(op, "output_size", output_size, 1, LARGEST_GRID)
    check_pair(op, "group_size", group_size, 1, LARGEST_GRID)
    C, cells = shape[1], group_size[0] * group_size[1]
    check(
        C % cells == 0,
        lambda: (
            f"{op}: the {C} channels of input do not divide into groups of "
            f"{group_size[0]} x {group_size[1]}"
        ),
    )
    check(spatial_scale > 0, lambda: f"{op}: spatial_scale must be positive, got {spatial_scale:g}")
    return [got[0], C // cells, *output_size]


def _check_coordinates(op: str, name: str, tensor: Tensor, input: Tensor) -> None:
    dtype, device = input.dtype, input.device
    check(
        tensor.dtype == dtype or (dtype.itemsize == 2 and tensor.dtype == torch.float32),
        lambda: (
            f"{op}: {name} must have the dtype of input ({dtype}), or float32 where input has "
            f"16 bits, got {tensor.dtype}"
        ),
    )
    check(
        tensor.device == device,
        lambda: f"{op}: {name} must be on the device of input ({device}), got {tensor.device}",
    )


def check_deform_roi_pool(
    op: str,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    group_size: Sequence[int],
) -> list[int]:
    """`check_roi_pool` and the same for what `deform_roi_pool` has beyond it."""
    R, D, *size = check_roi_pool(
        op, input.shape, input, rois, output_size, spatial_scale, group_size
    )
    check(
        0 < sampling_ratio <= LARGEST_GRID,
        lambda: f"{op}: sampling_ratio must be from 1 to {LARGEST_GRID}, got {sampling_ratio}",
    )
    if offset is not None:
        got = list(offset.shape)
        text = (
            f"{op}: offset must be (R, 2n, part_h, part_w) for {R} RoIs, where n divides the {D} "
            f"output channels; got {got}"
        )
        check(len(got) == 4, lambda: text)
        check(got[0] == R, lambda: text)
        check(got[1] > 0 and got[1] % 2 == 0 and D % (got[1] // 2) == 0, lambda: text)
        for parts in got[2:]:
            check(parts > 0, lambda: text)
        _check_known(got[2:], lambda: max(got[2:]) <= LARGEST_GRID, text)
        _check_coordinates(op, "offset", offset, input)
    return [R, D, *size]


def check_soft_nms(
    boxes: Tensor,
    scores: Tensor,
    starts: Tensor,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    max_per_class: int | None,
) -> None:
    """
    Raises:
        RuntimeError: if shapes, dtypes, devices or numbers do not fit
    """
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4,
        lambda: f"soft_nms: boxes must be (B, 4): x0, y0, x1, y1; got {list(boxes.shape)}",
    )
    check(scores.dim() == 1, lambda: f"soft_nms: scores must be (N,), got {list(scores.shape)}")
    N, B = scores.shape[0], boxes.shape[0]
    for fits in ((B > 0) | (N == 0), N % torch.sym_max(B, 1) == 0):
        check(fits, lambda: f"soft_nms: the {N} scores are no multiple of the number of boxes, {B}")
    _check_known([N], lambda: N <= 1 << 30, f"soft_nms: takes at most 2^30 scores, got {N}")
    dtype, device = scores.dtype, scores.device
    check(
        dtype in (torch.float32, torch.float64),
        lambda: f"soft_nms: scores must be float32 or float64, got {dtype}",
    )
    check(
        boxes.dtype == dtype,
        lambda: f"soft_nms: boxes must have the dtype of scores ({dtype}), got {boxes.dtype}",
    )
    check(
        starts.dim() == 1 and starts.shape[0] > 0 and starts.dtype == torch.int64,
        lambda: (
            "soft_nms: starts must be (S + 1,) and int64, got "
            f"{list(starts.shape)} and {starts.dtype}"
        ),
    )
    check(
        boxes.device == device and starts.device == device,
        lambda: (
            f"soft_nms: boxes and starts must be on the device of scores ({device}), "
            f"got {boxes.device} and {starts.device}"
        ),
    )
    check(
        method in ("linear", "gaussian", "hard"),
        lambda: f"soft_nms: method must be 'linear', 'gaussian' or 'hard', got '{method}'",
    )
    check(0 < sigma < math.inf, lambda: f"soft_nms: sigma must be positive, got {sigma:g}")
    check(
        0 <= iou_threshold <= 1,
        lambda: f"soft_nms: iou_threshold must be from 0 to 1, got {iou_threshold:g}",
    )
    check(
        0 <= score_threshold < math.inf,
        lambda: f"soft_nms: score_threshold must not be negative, got {score_threshold:g}",
    )
    check(
        max_per_class is None or max_per_class > 0,
        lambda: f"soft_nms: max_per_class must be positive or None, got {max_per_class}",
    )
