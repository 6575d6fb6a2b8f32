"""How the operators behave under PyTorch's transforms: autograd, torch.func, vmap."""

import pkgutil
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_library = torch.library.Library("dcn_projects", "FRAGMENT")


def _find_private_names() -> tuple[list | None, str]:
    """
    Returns:
        (what `_register_node` needs of PyTorch's private names, ""), or (None, the one that this
        version does not have)
    """
    found = []
    for name in (
        "torch.autograd.function._SingleLevelFunction",
        "torch._functorch.utils.enable_single_level_autograd_function",
        "torch.autograd.forward_ad._set_fwd_grad_enabled",
        "torch._C._AutoDispatchBelowAutograd",
        "torch._C._after_autograd_keyset",
    ):
        try:
            found.append(pkgutil.resolve_name(name))
        except (ImportError, AttributeError):
            return None, name
    return found, ""


_PRIVATE_NAMES, _MISSING = _find_private_names()
if _MISSING:
    warnings.warn(
        f"torch {torch.__version__} has no {_MISSING}, which dcn_projects needs for torch.func: "
        "the operators still have gradients, but torch.func refuses them.",
        stacklevel=2,
    )


def register_autograd(
    name: str, backward: Callable | None = None, setup_context: Callable | None = None
) -> None:
    """
    `torch.library.register_autograd`, which torch.func.grad, vjp and jacrev refuse and which drops
    forward-mode tangents without an error. Here the former work and the latter raise an error.
    That takes private names of PyTorch: where one is missing, it is
    `torch.library.register_autograd` itself, and `refuse_tangents` raises the error.

    Args:
        name: of the operator
        backward: ctx, gradients of the outputs -> gradients of the inputs; None where the operator
            is itself a derivative, which cannot be differentiated
        setup_context: ctx, inputs, output -> None, keeps what `backward` needs
    """
    function = name.removeprefix("_").removesuffix("_backward")

    def refuse(ctx, *grads):
        raise RuntimeError(f"{function} has no second derivative")

    if _PRIVATE_NAMES:
        _register_node(name, function, backward or refuse, setup_context)
    else:
        torch.library.register_autograd(
            f"dcn_projects::{name}", backward or refuse, setup_context=setup_context
        )


def _register_node(name: str, function: str, backward: Callable, setup_context: Callable | None):
    (
        single_level_function,
        enable_single_level_autograd_function,
        set_fwd_grad_enabled,
        auto_dispatch_below_autograd,
        after_autograd_keyset,
    ) = _PRIVATE_NAMES
    op = getattr(torch.ops.dcn_projects, name).default

    # functorch runs the autograd kernel of an operator once for each of its levels: what is needed
    # here is a node for one level, as it makes itself for a torch.autograd.Function.
    class Node(single_level_function):
        @staticmethod
        def forward(ctx, keyset, *inputs):
            # A node turns derivatives off for what it calls, but the levels below need theirs.
            with (
                torch.enable_grad(),
                set_fwd_grad_enabled(True),
                auto_dispatch_below_autograd(),
            ):
                output = op.redispatch(keyset & after_autograd_keyset, *inputs)
            if setup_context:
                setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx, *grads):
            needs_input_grad, ctx.needs_input_grad = ctx.needs_input_grad, ctx.needs_input_grad[1:]
            try:
                return None, *backward(ctx, *grads)
            finally:
                ctx.needs_input_grad = needs_input_grad

        @staticmethod
        def jvp(ctx, *tangents):
            raise _no_forward_mode(function)

    def kernel(keyset, *inputs):
        with enable_single_level_autograd_function():
            return Node.apply(keyset, *inputs)

    Node.__name__ = f"{name}_node"
    _library.impl(name, kernel, "Autograd", with_keyset=True)


def _no_forward_mode(function: str) -> RuntimeError:
    return RuntimeError(
        f"{function} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian) and "
        "no second derivative"
    )


def refuse_tangents(function: str, *tensors: Tensor | None) -> None:
    """
    Called by the public function of an operator. Where `register_autograd` could not register a
    node of its own, PyTorch would drop the tangents, and give zeros as the derivative.

    Args:
        function: its name
        tensors: its differentiable arguments
    Raises:
        RuntimeError: if one of them has a forward-mode tangent
    """
    # A graph that is compiled or exported holds no tangents.
    if _PRIVATE_NAMES or torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise _no_forward_mode(function)


def register_vmap(name: str, fold: Callable) -> None:
    """
    Args:
        name: of the operator
        fold: size, in_dims, arguments of the operator -> its results, with the vmapped dimension
            first. in_dims has None where an argument has no such dimension. PyTorch 2.4 does not
            know such functions: it calls the operator once per example, and warns
    """
    if hasattr(torch.library, "register_vmap"):

        def vmap(info, in_dims, *arguments):
            results = fold(info.batch_size, in_dims, *arguments)
            return results, (0,) * len(results) if isinstance(results, tuple) else 0

        torch.library.register_vmap(f"dcn_projects::{name}", vmap)


def stacked(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """
    Returns:
        Tensor: with the vmapped dimension `dim` in front; repeated, without a copy, if it has none
    """
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def folded(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """
    Returns:
        Tensor: with the vmapped dimension folded into the batch, (size * N, ...)
    """
    return None if tensor is None else stacked(tensor, dim, size).flatten(0, 1)


def folded_rois(rois: Tensor, dim: int | None, size: int, images: int) -> Tensor:
    """
    Returns:
        Tensor: (size * R, 5) for a batch of size * images: image i of example b is b * images + i.
            An index of no image becomes -1, so that it does not point into another example
    """
    # 16 bits do not hold the larger indices.
    rois = stacked(rois if rois.element_size() > 2 else rois.float(), dim, size)
    first = images * torch.arange(size, dtype=rois.dtype, device=rois.device).view(-1, 1, 1)
    index = rois[..., :1]
    index = torch.where((index >= 0) & (index < images), index + first, -1)
    return torch.cat([index, rois[..., 1:]], -1).flatten(0, 1)


def one_by_one(name: str, size: int, in_dims, *arguments) -> Tensor | tuple[Tensor, ...]:
    """Calls the operator for each example, where examples have nothing to share."""
    op = getattr(torch.ops.dcn_projects, name)
    results = [
        op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(arguments, in_dims)))
        for i in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(torch.stack(tensors) for tensors in zip(*results))
