"""
Prints what a report of a problem should say, and tests the operators: python -m
dcn_projects.collect_env. The exit status is 1 if an operator fails its test.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import importlib.metadata
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.utils.collect_env import collect_env_info
from tabulate import tabulate

from dcn_projects import __version__
from dcn_projects.layers import fallback, library
from dcn_projects.layers.self_test import self_tests

SELF_TESTS = self_tests()


def versions() -> list[tuple[str, str]]:
    """Rows (name, version) of what detectron2 does not list."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler):
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        compiler = text.split("\n")[0]
    else:
        compiler = f"none ({compiler} is not on PATH)"
    return [
        ("dcn_projects", f"{__version__} in {Path(__file__).parent}"),
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
        cpu, cuda = (
            "compiled" if compiled else fallback.runs_on(name)
            for compiled in (library.COMPILED, library.HAS_CUDA)
        )
        rows.append((name, cpu, cuda))
    return rows


def main() -> int:
    """Prints everything and returns the exit status."""
    print(collect_env_info())
    print(tabulate(versions()))
    print(tabulate(kernels(), headers=["operator", "cpu", "cuda"]))
    devices = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    failed = False
    for device in devices:
        start = time.perf_counter()
        results = {name: test.run(device) for name, test in SELF_TESTS.items()}
        failed |= any(result != "ok" for result in results.values())
        text = ", ".join(f"{name} {result}" for name, result in results.items())
        print(f"self test on {device}: {text} ({time.perf_counter() - start:.1f} s)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
