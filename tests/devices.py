"""The devices that tests run on: `@pytest.mark.parametrize("device", DEVICES)`."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dcn_projects.layers.library import COMPILED, HAS_CUDA

# A library for the CPU runs on CUDA without its promises on order, memory and dtypes.
_only_cpu = COMPILED and not HAS_CUDA
_reason = "the operators were built without CUDA" if _only_cpu else "there is no CUDA device"
_without_cuda = pytest.mark.skipif(_only_cpu or not torch.cuda.is_available(), reason=_reason)
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, _without_cuda])
DEVICES = ["cpu", CUDA]


def needs_memory(device: str, gigabytes: float) -> None:
    """Skips the test where less memory is free; operators that are not compiled need more."""
    gigabytes *= 1 if COMPILED else 4
    if device == "cpu":
        meminfo = Path("/proc/meminfo").read_text()
        free = 1024 * int(re.search(r"MemAvailable: *(\d+) kB", meminfo)[1])
        limit = Path("/sys/fs/cgroup/memory.max")  # of a container
        if limit.exists() and limit.read_text().strip() != "max":
            used = int((limit.parent / "memory.current").read_text())
            free = min(free, int(limit.read_text()) - used)
    else:
        free = torch.cuda.mem_get_info()[0]
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of memory, {free / 1e9:.1f} GB are free")


def large_zeros(*shape: int, dtype=torch.float32, device: str) -> torch.Tensor:
    """torch.zeros, which on the CPU takes neither memory nor time where nothing is written."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    data = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(data).view(dtype).view(shape)
