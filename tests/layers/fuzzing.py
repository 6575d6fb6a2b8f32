"""
What the fuzz tests call the operators with: a dict of plain numbers, a case, which is what a
failure prints. FUZZ in operators/<op>.py is

    make_case(choose)               a case; choose(values) is one of them. hypothesis chooses in
        test_fuzz.py, where cases shrink, and a generator of random numbers in fuzz_many.py
    check(case, device, expected)   fills tensors from the seed of the case, compares with
        `expected`, reference_results or fallback_results, and returns how many calls it compared
    examples                        how many cases a short run has

Derivatives and the borders of what counts are discontinuous. So that float32 and the reference in
float64 fall on the same side, deformable convolution gets offsets away from integers (or its
gradient of the offsets is not compared), and the RoI operators positions that are sums of few
powers of two, which every dtype holds. Cases that are `extreme` have no such limits: they are
compared with the fallback, which places samples by the same sums, in the same dtype.
"""

import math

import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import dcn_projects.layers
from dcn_projects.layers import fallback
from tests.layers import reference

WIDE, NARROW = [torch.float64, torch.float32], [torch.float16, torch.bfloat16]
LAYOUTS = [
    "contiguous",
    "channels_last",
    "sliced",
    "transposed",
    "unaligned",
    "expanded",
    "overlapping",
]
REPEATING = LAYOUTS[-2:]
WILD = torch.tensor([math.nan, math.inf, -math.inf, 1e20, -1e20, 2.0**31], dtype=torch.float64)
SEEDS = range(2**32)
YES_OR_NO = [False, True]


def lay_out(tensor, layout):
    """The tensor in another memory layout; the last two also repeat some of its values."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "unaligned":
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand_as(tensor)
    if layout == "overlapping" and tensor.numel():
        return tensor.contiguous().as_strided(tensor.shape, [1] * tensor.dim())
    return tensor.contiguous()


def some(choose, names):
    return [name for name in names if choose(YES_OR_NO)]


def dtypes_and_layouts(choose, names, layouts=LAYOUTS):
    """
    `wide`: which of offset, mask and rois are float32 beside a 16-bit input; `again`: see `calls`.
    """
    return {
        "dtype": choose(WIDE + NARROW),
        "wide": some(choose, ["offset", "mask", "rois"]),
        "layouts": {name: choose(layouts) for name in [*names, "rois", "head"]},
        "requires_grad": names if choose(YES_OR_NO) else some(choose, names),
        "threads": choose([1, 2, 3]),
        "again": other_calls(choose),
        "seed": choose(SEEDS),
    }


def other_calls(choose):
    layouts = [layout for layout in LAYOUTS if layout not in REPEATING]
    return [(choose(layouts), choose([1, 2, 3]), choose(YES_OR_NO)) for _ in range(3)]


def calls(case, tensors):
    """
    Yields threads and tensors for the calls of a case: the case itself, and `again` with the same
    values in another memory layout, on other threads, and some in float64. What is right takes
    longer to find than all of these.
    """
    yield case["threads"], tensors
    for layout, threads, exactly in case["again"]:
        dtype = torch.float64 if exactly and not case.get("extreme") else None
        yield (
            threads,
            {
                name: lay_out(t.detach().to(dtype or t.dtype), layout).requires_grad_(
                    t.requires_grad
                )
                for name, t in tensors.items()
            },
        )


def of_any_size(shape, generator):
    """Numbers of both signs whose logarithms are evenly spread, up to 1e38 and so small as 1e-8."""
    size = torch.rand(shape, generator=generator, dtype=torch.float64) * 46 - 8
    return 10**size * (torch.randint(2, shape, generator=generator) * 2 - 1)


def dtype_of(case, name):
    is_wide = case["dtype"] in NARROW and name in case["wide"]
    return torch.float32 if is_wide else case["dtype"]


def finish(case, tensors, device):
    """Tensors of the case's dtypes and layouts."""
    result = {}
    for name, tensor in tensors.items():
        dtype = dtype_of(case, name)
        tensor = lay_out(tensor.to(device, dtype), case["layouts"].get(name, "contiguous"))
        result[name] = tensor.requires_grad_(name in case["requires_grad"])
    return result


TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.5e-2,
}


def assert_all_close(actual, expected, tolerance):
    """Relative to the largest value. Values are of order 1; a sum of them may happen to be less."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        tensor, found = tensor.detach().double(), actual[name].detach().cpu().double()
        largest = tensor.abs().nan_to_num(0, 0).max().item() if tensor.numel() else 0
        limit = tolerance * max(largest, 1)
        if found.shape == tensor.shape and bool(((found - tensor).abs() <= limit).all()):
            continue  # assert_close takes longer than all else
        assert_close(
            found,
            tensor,
            rtol=0,
            atol=limit,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def exact_copies(tensors, dtype=torch.float64):
    """Contiguous ones; with dtype None of their own dtypes."""
    return {
        k: t.detach()
        .to("cpu", dtype or t.dtype, copy=True)
        .contiguous()
        .requires_grad_(t.requires_grad)
        for k, t in tensors.items()
    }


def on_threads(threads, function, *arguments, **numbers):
    """What the function returns on so many threads. One does the rest, which is faster."""
    torch.set_num_threads(threads)
    try:
        return function(*arguments, **numbers)
    finally:
        torch.set_num_threads(1)


def check_calls(function, case, tensors, numbers, expected, leave_out=()):
    """Compares the results of all `calls` and returns how many. `head` is one of the tensors."""
    for threads, (head, others) in ((n, split_head(t)) for n, t in calls(case, tensors)):
        actual = on_threads(threads, results, function, others, head, numbers)
        assert actual["out"].dtype == others["input"].dtype
        assert actual["out"].requires_grad == any(t.requires_grad for t in others.values())
        for name in leave_out:
            assert actual.pop(name).isfinite().all()
        assert_all_close(actual, expected, TOLERANCES[others["input"].dtype])
    return 1 + len(case["again"])


def split_head(tensors):
    return tensors["head"], {name: t for name, t in tensors.items() if name != "head"}


def results(function, tensors, head, numbers):
    """The result and, by name, the gradients of sum(result * head)."""
    out = function(**tensors, **numbers)
    leaves = {k: t for k, t in tensors.items() if t.requires_grad}
    if not out.requires_grad:
        return {"out": out, **{k: torch.zeros_like(t) for k, t in leaves.items()}}
    grads = torch.autograd.grad(out, list(leaves.values()), head, materialize_grads=True)
    for tensor, grad in zip(leaves.values(), grads):
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape
    return {"out": out, **dict(zip(leaves, grads))}


def reference_results(name, *arguments):
    return results(getattr(reference, name), *arguments)


class _FallbackKernels(TorchDispatchMode):
    """Within it, the fallback's kernels are called instead of the operators'."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function.name().partition("::")
        kernel = fallback.kernel(name) if namespace == "dcn_projects" else function
        return kernel(*args, **(kwargs or {}))


def by_fallback(function, *arguments, **numbers):
    """What the function returns with the fallback's kernels."""
    with _FallbackKernels():
        return function(*arguments, **numbers)


def fallback_results(name, *arguments):
    return by_fallback(results, getattr(dcn_projects.layers, name), *arguments)
