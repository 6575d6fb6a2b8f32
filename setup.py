"""
Builds the operators in dcn_projects/layers/csrc into one shared library, dcn_projects/_C.abi3.so.

They register themselves with PyTorch's dispatcher and use nothing of Python's, so one build serves
every Python version. CUDA is included where an nvcc fits PyTorch's CUDA, whether or not there is a
GPU; the last line printed says what was built and why. Without a C++ compiler nothing is built, and
the operators run on torchvision's and PyTorch's kernels (layers/fallback). Environment variables:
    CXX                     the C++ compiler, if it is not c++
    FORCE_CUDA=0            CPU only
    FORCE_CUDA=1            CUDA, or an error that says what is missing
    CUDA_HOME               the toolkit, if it is not the one of the nvcc on PATH
    TORCH_CUDA_ARCH_LIST    GPU architectures, for example "8.0;9.0"
    MAX_JOBS                how many compilers run at once
    DCN_CXXFLAGS            more flags for the C++ compiler and the linker, which win over our own;
                            -DDCN_PLAIN leaves out what only some processors and libraries have
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
except ImportError as error:
    raise SystemExit(
        "The operators are built against the PyTorch that they will run with. Install torch, then\n"
        "    pip install --no-build-isolation -e .\n"
        "(without that option pip builds in an environment that has no torch)."
    ) from error

# Architectures to build for where no GPU is visible; later ones run the last one's PTX.
ARCHITECTURES = ["7.5", "8.0", "8.6", "8.9", "9.0"]


def output_of(*command) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.stdout


def find_toolkit() -> Path | None:
    """
    Returns:
        Path: the CUDA toolkit's folder, None if there is none. PyTorch takes the folder above
            nvcc's, which is wrong where the nvcc on PATH is a script that calls the real one.
    """
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates += re.findall(r"\bTOP=(.*)", output_of(nvcc, "--dryrun", "any.cu"))
        candidates.append(Path(nvcc).resolve().parents[1])
    for candidate in filter(None, [*candidates, "/usr/local/cuda"]):
        home = Path(os.path.normpath(candidate))
        runtimes = [home / "lib64/libcudart.so", home / "lib/libcudart.so"]
        required = [home / "bin/nvcc", home / "include/cuda_runtime_api.h"]
        if all(f.exists() for f in required) and any(f.exists() for f in runtimes):
            return home
    return None


def choose_cuda() -> tuple[Path | None, str]:
    """
    Returns:
        (toolkit, its version), or (None, why the build is for the CPU only)
    Raises:
        SystemExit: if FORCE_CUDA=1 and CUDA cannot be had
    """
    force = os.environ.get("FORCE_CUDA")
    if force == "0":
        return None, "FORCE_CUDA=0"
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} has no CUDA; install a build of torch that has"
    else:
        home = find_toolkit()
        if home is None:
            reason = "no nvcc found; set CUDA_HOME to the folder of the CUDA toolkit"
        else:
            release = re.search(r"release ([\d.]+)", output_of(home / "bin/nvcc", "--version"))[1]
            if release.split(".")[0] == torch.version.cuda.split(".")[0]:
                return home, release
            reason = f"nvcc is of CUDA {release}, torch of {torch.version.cuda}; set CUDA_HOME"
    if force == "1":
        raise SystemExit(f"FORCE_CUDA=1, but {reason}")
    return None, reason


def default_architectures(toolkit: Path) -> str:
    """
    Returns:
        str: those of the visible GPUs, or without a GPU all that the toolkit knows of the usual
            ones. PyTorch has no default for a machine without a GPU: it fails.
    """
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return ";".join(f"{major}.{minor}" for major, minor in sorted(found))
    known = output_of(toolkit / "bin/nvcc", "--list-gpu-arch").split()
    return ";".join(a for a in ARCHITECTURES if "compute_" + a.replace(".", "") in known) + "+PTX"


compiler = os.environ.get("CXX", "c++")
has_compiler = shutil.which(compiler.split()[0]) is not None
if not has_compiler and os.environ.get("FORCE_CUDA") == "1":
    raise SystemExit(f"FORCE_CUDA=1, but there is no C++ compiler: {compiler} is not on PATH")
toolkit, reason = choose_cuda()
if not has_compiler:
    summary = (
        f"none (no C++ compiler found: {compiler} is not on PATH; install one or set CXX). "
        "They will run on torchvision and plain PyTorch, slower, as a fallback"
    )
elif toolkit:
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures(toolkit))
    summary = f"CPU + CUDA {reason} ({os.environ['TORCH_CUDA_ARCH_LIST'].replace(';', ' ')})"
else:
    summary = f"CPU only ({reason})"

# It looks for the toolkit when it is imported: CUDA_HOME has to be set by now.
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402


class BuildOperators(BuildExtension):
    def initialize_options(self):
        super().initialize_options()
        # One place for the object files of every kind of build (pip uses a new one each time), so
        # that ninja compiles only what changed. It also sees changed flags: let it decide.
        self.build_temp = "build/operators"
        self.force = True

    def run(self):
        if has_compiler:
            super().run()
        print(f"operators: {summary}")


def operator_library():
    csrc = Path("dcn_projects/layers/csrc")
    sources = [*csrc.rglob("*.cpp"), *(csrc.rglob("*.cu") if toolkit else [])]
    more_flags = shlex.split(os.environ.get("DCN_CXXFLAGS", ""))
    extension = (CUDAExtension if toolkit else CppExtension)(
        "dcn_projects._C",
        sorted(map(str, sources)),
        # No -march: kernels choose the instruction set when they run. Without -fopenmp
        # at::parallel_for, a template in a header, runs on one thread and does not say so. Python's
        # own flags ask for debugging information, which would be 19 of 20 bytes: -g0.
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
            + more_flags,
            "nvcc": ["-O3"],
        },
        extra_link_args=["-fopenmp", *more_flags],
        py_limited_api=True,
        optional=not has_compiler,
    )
    # A slim toolkit lacks the headers of cuBLAS and its kin; pip's NVIDIA packages have them.
    # After the toolkit's own, which must win where both have a header.
    site_packages = Path(torch.__file__).parents[1]
    extension.include_dirs += sorted(map(str, site_packages.glob("nvidia/*/include")))
    return extension


setup(
    license="Apache-2.0",
    # configs/ stays where everyone looks for it, and becomes part of the package when it is packed.
    packages=[*find_packages(include=["dcn_projects", "dcn_projects.*"]), "dcn_projects.configs"],
    package_dir={"dcn_projects.configs": "configs"},
    # ops.cpp has the schemas, from which the package has its list of operators.
    package_data={
        "dcn_projects": ["py.typed", "layers/csrc/ops.cpp"],
        "dcn_projects.configs": ["**/*.yaml"],
    },
    include_package_data=False,  # MANIFEST.in is for the source archive, not for the wheel
    ext_modules=[operator_library()],
    cmdclass={"build_ext": BuildOperators},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
