#!/usr/bin/env python3
"""
Collect the wheels that a machine without network lacks, given that it has torch and torchvision.

Run it with the Python in which dcn_projects is installed: its dependencies are the ones collected,
for the given version of Python on Linux x86-64. Prints what to type on the other machine.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

LIMIT = 60  # MiB
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64"]
PLATFORMS += ["manylinux_2_17_x86_64", "manylinux2014_x86_64"]

# The index has no wheels of these: they are built here (pure Python, so they serve every version).
SOURCE_ONLY = ["fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "antlr4-python3-runtime==4.9.*"]
# pip judges such conditions by the Python that it runs on: pytest needs these below 3.11.
BELOW_3_11 = ["exceptiongroup", "tomli"]

# What torch and torchvision themselves require.
COMES_WITH_TORCH = """
    filelock fsspec jinja2 markupsafe mpmath networkx numpy pillow setuptools sympy
    typing_extensions
""".split()
# Part of Python since 3.5; the package would shadow it under `pip install --target`.
STANDARD_LIBRARY = ["typing"]
# More than the rest together. Training and evaluation work without them: OpenCV draws and rotates
# (detectron2 does not need it), the next two make the generated data, the others export to ONNX.
LARGE = ["opencv_python", "scikit_learn", "scipy", "onnx", "onnxruntime"]
ONNX_ONLY = ["flatbuffers", "ml_dtypes", "onnx_ir", "onnxscript"]


def name_of(wheel: Path) -> str:
    return re.sub(r"[-_.]+", "_", wheel.name.split("-")[0]).lower()


def requirements(python_version: str) -> list[str]:
    """
    Returns:
        list[str]: detectron2 and what dcn_projects and its tests require, without torch
    """
    ours = [r.partition(";") for r in requires("dcn_projects")]
    names = [r.strip() for r, _, extra in ours if not extra or "test" in extra or "data" in extra]
    names = [r for r in names if not r.startswith("torch")]
    if tuple(map(int, python_version.split("."))) < (3, 11):
        names += BELOW_3_11
    return [*names, "detectron2==0.6", "ninja", "wheel"]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run([*command, "--quiet"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--python-version", default="3.12", help="of the other machine")
    parser.add_argument("--output", type=Path, default=Path("wheelhouse"))
    args = parser.parse_args()
    folder = str(args.output)

    for wheel in args.output.glob("*.whl"):
        wheel.unlink()
    installer = Path(__file__).with_name("install_detectron2.py")
    subprocess.run([sys.executable, installer, "--wheel-dir", folder], check=True)
    pip("wheel", "--no-deps", "--wheel-dir", folder, *SOURCE_ONLY)
    target = ["--python-version", args.python_version, "--implementation", "cp"]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    pip(
        *["download", "--dest", folder, "--find-links", folder, "--only-binary", ":all:"],
        *[*target, *requirements(args.python_version)],
    )

    for wheel in args.output.glob("*.whl"):
        if name_of(wheel) in COMES_WITH_TORCH + STANDARD_LIBRARY + LARGE + ONNX_ONLY:
            wheel.unlink()
    wheels = list(args.output.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{folder}: {len(wheels)} wheels, {size:.1f} MiB, for Python {args.python_version}")
    if size > LIMIT:
        raise SystemExit(f"{folder} is larger than {LIMIT} MiB: see LARGE in {__file__}")
    print(
        "Not in it: torch and torchvision with what they require, "
        f"and for their size {', '.join(LARGE)} (for drawing, making the digits data, ONNX).\n"
        "On the other machine, in this folder, with the Python that has torch:\n"
        f"    python3 -m pip install --no-index --no-deps {folder}/*.whl\n"
        "    python3 -m pip install --no-build-isolation --no-deps -e ."
    )


if __name__ == "__main__":
    main()
