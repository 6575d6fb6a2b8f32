"""
Prints what a report of a problem should say, and tests the operators: python -m
dcn_projects.collect_env. The exit status is 1 if an operator fails its test.
"""

import importlib.metadata
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate
from torch import Tensor

from dcn_projects.layers import deform_conv, deform_roi_pool, library, ps_roi_pool, soft_nms


def versions() -> list[tuple[str, str]]:
    """Rows (name, version) of what detectron2 does not list."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler):
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        compiler = text.split("\n")[0]
    else:
        compiler = f"none ({compiler} is not on PATH)"
    return [
        ("dcn_projects", str(Path(__file__).parent)),
        ("pycocotools", importlib.metadata.version("pycocotools")),
        ("C++ compiler", compiler),
        ("operators", built()),
    ]


def built() -> str:
    """What the library of the operators was built for."""
    if not library.COMPILED:
        return f"not compiled. {library.WHY_NOT_COMPILED}"
    if not library.HAS_CUDA:
        return f"{library.PATH}: CPU only"
    return f"{library.PATH}: CPU + CUDA ({' '.join(gpu_architectures(library.PATH))})"


def gpu_architectures(path: Path) -> list[str]:
    """
    Read from the library, since machines that run it seldom have the tools of CUDA.

    Returns:
        list: "8.0" for machine code of an architecture, "9.0+PTX" for code that later ones compile
    """
    # A fat binary: magic number, version 1, 16 bytes of header, size; then entries of kind (1 is
    # PTX, 2 machine code), version, size of header, size, ..., and the architecture at byte 28.
    data, found = path.read_bytes(), set()
    magic = struct.pack("<IHH", 0xBA55ED50, 1, 16)
    begin = data.find(magic)
    while begin >= 0:
        (size,) = struct.unpack_from("<Q", data, begin + 8)
        entry, end = begin + 16, begin + 16 + size
        while entry < end:
            kind, _, header, length = struct.unpack_from("<HHIQ", data, entry)
            (number,) = struct.unpack_from("<I", data, entry + 28)
            found.add((number, "+PTX" if kind == 1 else ""))
            entry += header + length
        begin = data.find(magic, end)
    return [f"{number // 10}.{number % 10}{ptx}" for number, ptx in sorted(found)]


def kernels() -> list[tuple[str, str, str]]:
    """Rows (operator, what serves it on the CPU, what on CUDA)."""
    rows = []
    for name in library.OPERATORS:
        if library.COMPILED:
            cpu, cuda = "compiled", "compiled" if library.HAS_CUDA else "none: not built with CUDA"
        else:
            cpu = cuda = "torchvision" if "deform_conv" in name else "PyTorch"
        rows.append((name, cpu, cuda))
    return rows


# The self test needs no other implementation: where all offsets are the same, a deformable operator
# is a plain one on a map that has been moved. `move` is (y, x), in cells, from 0 to 1. Soft-NMS of
# three boxes can be computed by hand.
ROI = [[0.0, 4, 4, 12, 12]]


def _moved(x: Tensor, move: Tensor) -> Tensor:
    """x at (y, x) + move, bilinearly, with zeros behind the last row and column."""
    x = F.pad(x, (0, 1, 0, 1))
    x = x[..., :-1, :] * (1 - move[0]) + x[..., 1:, :] * move[0]
    return x[..., :-1] * (1 - move[1]) + x[..., 1:] * move[1]


def _deform_conv(x, move, weight):
    offset = move.view(1, 2, 1, 1).repeat(len(x), weight.shape[2] * weight.shape[3], *x.shape[2:])
    return deform_conv(x, offset, weight, padding=1)


def _moved_conv(x, move, weight):
    return F.conv2d(_moved(F.pad(x, (1, 1, 1, 1)), move), weight)


def _ps_roi_pool(x, move, weight):
    return ps_roi_pool(x, x.new_tensor(ROI), 2, 1.0)


def _ps_means(x, move, weight):
    means = F.avg_pool2d(x[:1, :, 4:12, 4:12], 4).unflatten(1, (-1, 2, 2))
    return torch.einsum("ndijij->ndij", means)


def _deform_roi_pool(x, move, weight):
    # Samples begin at 3.5; gamma times the size of the RoI is 0.8.
    offset = ((move + 0.5) / 0.8).flip(0).view(1, 2, 1, 1)
    return deform_roi_pool(x, x.new_tensor(ROI), offset, 2, 1.0)


def _moved_means(x, move, weight):
    return F.avg_pool2d(_moved(x, move)[:1, :, 4:12, 4:12], 4)


# The second box covers half of the first, the third meets none. What x is multiplied with makes the
# scores a result that has a gradient.
BOXES, SCORES = [[0.0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]], [0.9, 0.8, 0.7]


def _soft_nms(x, move, weight):
    keep, scores = soft_nms(x.new_tensor(BOXES), x.new_tensor(SCORES), sigma=0.5)
    return x.flatten()[keep] * scores


def _three_scores(x, move, weight):
    return x.flatten()[[0, 2, 1]] * x.new_tensor([0.9, 0.7, 0.8 * math.exp(-(0.5**2) / 0.5)])


SELF_TESTS = {
    "deform_conv": (_deform_conv, _moved_conv),
    "ps_roi_pool": (_ps_roi_pool, _ps_means),
    "deform_roi_pool": (_deform_roi_pool, _moved_means),
    "soft_nms": (_soft_nms, _three_scores),
}


def _result_and_gradients(function, tensors: list[Tensor]) -> list[Tensor | None]:
    tensors = [t.requires_grad_() for t in tensors]
    out = function(*tensors)
    grads = torch.autograd.grad(out.sin().sum(), tensors, allow_unused=True)
    return [None if t is None else t.detach().cpu().double() for t in (out, *grads)]


def self_test(name: str, device: str) -> str:
    """
    Returns:
        str: "ok" if result and gradients of an operator are right in float32, else what is not
    """
    function, reference = SELF_TESTS[name]
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, generator=generator) for s in [(2, 8, 16, 16), (5, 8, 3, 3)])
    tensors = [x, torch.tensor([0.25, 0.625]), weight]
    expected = _result_and_gradients(reference, [t.double() for t in tensors])
    try:
        actual = _result_and_gradients(function, [t.clone().to(device) for t in tensors])
    except RuntimeError as error:
        return f"FAILED: {error}"
    names = ("result", "gradient of input", "gradient of offset", "gradient of weight")
    for what, a, e in zip(names, actual, expected):
        if e is not None and not torch.allclose(a, e, rtol=0, atol=1e-4 * e.abs().max().item()):
            return f"FAILED: {what} is off by {(a - e).abs().max():.2g} of {e.abs().max():.2g}"
    return "ok"


def main() -> int:
    """Prints everything and returns the exit status."""
    print(collect_env_info())
    print(tabulate(versions()))
    print(tabulate(kernels(), headers=["operator", "cpu", "cuda"]))
    devices = ["cpu"]
    if library.HAS_CUDA:
        devices += [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    failed = False
    for device in devices:
        start = time.perf_counter()
        results = {name: self_test(name, device) for name in SELF_TESTS}
        failed |= any(result != "ok" for result in results.values())
        text = ", ".join(f"{name} {result}" for name, result in results.items())
        print(f"self test on {device}: {text} ({time.perf_counter() - start:.1f} s)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
