#!/usr/bin/env python3
"""
Install detectron2 0.6 where there is none, as a wheel without compiled code.

A detectron2 that is already importable is used as it is. Otherwise the source archive of 0.6 is
downloaded, checked, repaired for today's Python, NumPy, Pillow and PyTorch, packed into a wheel and
installed with its dependencies (torch, torchvision and OpenCV are left to the caller).

The index has that archive under the name pb1-detectron2: the Python files of the official tag v0.6,
byte for byte, without the C++ ones. pip refuses it because one of its extras names a direct URL.
"""

import argparse
import base64
import hashlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ARCHIVE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WHEEL = "detectron2-0.6-py3-none-any.whl"

# Folders of the archive and the packages that detectron2's own setup.py makes of them.
PACKAGES = {
    "detectron2/": "detectron2/",
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# What is imported without being asked for. Not here: what caffe2 export needs (future, pydot), and
# black, which only LazyConfig.to_py calls.
REQUIREMENTS = """
    numpy Pillow>=7.1 matplotlib pycocotools>=2.0.2 termcolor>=1.1 yacs>=0.1.8 tabulate cloudpickle
    tqdm>4.29.0 tensorboard fvcore>=0.1.5,<0.1.6 iopath>=0.1.7 omegaconf>=2.1 hydra-core>=1.1
""".split()

# The end of export/api.py.
WITHOUT_CAFFE2 = """

if caffe2_pb2 is None:

    def _refuse(*args, **kwargs):
        raise ImportError(
            "detectron2 exports to Caffe2 with the package caffe2 only, which PyTorch does not "
            "contain any more: use TracingAdapter or scripting_with_instances of detectron2.export"
        )

    Caffe2Tracer.__init__ = Caffe2Model.__init__ = _refuse
    Caffe2Model.load_protobuf = staticmethod(_refuse)
    export_caffe2_model = export_onnx_model = _refuse
"""

# (file in the archive, regular expression, replacement, how often it occurs)
NUMPY_ALIAS = r"\bnp\.(bool|int|float|str)\b"  # removed in NumPy 1.24
REPAIRS = [
    ("detectron2/data/build.py", NUMPY_ALIAS, r"\1", 2),
    ("detectron2/data/datasets/pascal_voc.py", NUMPY_ALIAS, r"\1", 1),
    ("detectron2/evaluation/pascal_voc_evaluation.py", NUMPY_ALIAS, r"\1", 2),
    ("detectron2/evaluation/sem_seg_evaluation.py", NUMPY_ALIAS, r"\1", 7),
    ("detectron2/structures/masks.py", NUMPY_ALIAS, r"\1", 3),
    ("detectron2/utils/video_visualizer.py", NUMPY_ALIAS, r"\1", 1),
    ("detectron2/utils/visualizer.py", NUMPY_ALIAS, r"\1", 3),
    # copy=False means "never copy" since NumPy 2.0, and an image has to be copied.
    ("detectron2/layers/mask_ops.py", r"np\.array\(mask, copy=False\)", "np.asarray(mask)", 1),
    # Removed in Pillow 10.
    ("detectron2/data/transforms/transform.py", r"\bImage\.LINEAR\b", "Image.BILINEAR", 1),
    # pkg_resources left setuptools, and setuptools left virtual environments.
    ("detectron2/model_zoo/model_zoo.py", r"(?m)^import pkg_resources\n", "", 1),
    (
        "detectron2/model_zoo/model_zoo.py",
        r'pkg_resources\.resource_filename\(\s+"detectron2\.model_zoo", ',
        "os.path.join(\n        os.path.dirname(__file__), ",
        1,
    ),
    # Deprecated in PyTorch 2.4, with a warning at each training step.
    (
        "detectron2/engine/train_loop.py",
        r"from torch\.cuda\.amp import",
        "from torch.amp import",
        2,
    ),
    ("detectron2/engine/train_loop.py", r"with autocast\(\)", 'with autocast("cuda")', 1),
    # Without `indexing`, a warning at the first image.
    (
        "detectron2/modeling/anchor_generator.py",
        r"torch\.meshgrid\(shifts_y, shifts_x\)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
    ),
    # The evaluation in C++ is not here; later versions of detectron2 fall back in the same way.
    (
        "detectron2/evaluation/coco_evaluation.py",
        r"from detectron2\.evaluation\.fast_eval_api import COCOeval_opt",
        "from pycocotools.cocoeval import COCOeval as COCOeval_opt",
        1,
    ),
    # caffe2 has left PyTorch. Tracing and scripting, in the same package, do not need it.
    ("detectron2/export/api.py", r"(?m)^from caffe2\.proto import caffe2_pb2\n", "", 1),
    (
        "detectron2/export/api.py",
        r"(?m)^(from \.caffe2_inference .+)\n(from \.caffe2_modeling .+)\n(from \.shared .+)\n",
        r"""
try:
    from caffe2.proto import caffe2_pb2
except ImportError:
    caffe2_pb2 = None
else:
    \1
    \2
    \3
""",
        1,
    ),
    ("detectron2/export/api.py", r"\Z", WITHOUT_CAFFE2, 1),
]

STUB = '''"""Stands in for detectron2's compiled operators, which this build does not have."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    message = f"module 'detectron2._C' has no attribute '{name}'"
    if not name.startswith("__"):
        message += (
            ": this is a pure-Python build of detectron2 without its compiled operators "
            "(deformable convolution, rotated boxes, fast COCO evaluation). For these, install "
            "pip install 'git+https://github.com/facebookresearch/detectron2'"
        )
    raise AttributeError(message)
'''


def download(folder: str) -> bytes:
    """
    Returns:
        bytes: the source archive, as the package index has it

    The downloader (unearth) and its dependencies live in `folder` for this one call, so that the
    environment stays as it was.
    """
    tool = f"{folder}/unearth"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tool, "unearth"]
    subprocess.run(pip, check=True)
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", folder, ARCHIVE]
    if "PIP_INDEX_URL" in os.environ:
        command += ["--index-url", os.environ["PIP_INDEX_URL"]]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": tool}
    )
    return next(Path(folder).glob("pb1*.tar.gz")).read_bytes()


def read_archive(archive: bytes) -> dict[str, bytes]:
    """
    Returns:
        dict: path below the archive's top folder -> contents, of all regular files
    Raises:
        ValueError: if the archive is not the one that the repairs were written for
    """
    found = hashlib.sha256(archive).hexdigest()
    if found != SHA256:
        raise ValueError(f"{ARCHIVE}: the archive's sha256 is {found}, expected {SHA256}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [m for m in tar.getmembers() if m.isfile()]
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in members}


def repair(files: dict[str, bytes], repairs: list[tuple[str, str, str, int]]) -> None:
    """
    Apply `repairs` to `files` in place.

    Raises:
        ValueError: if a pattern does not occur exactly as often as it should
    """
    for path, pattern, replacement, expected in repairs:
        text, count = re.subn(pattern, replacement, files[path].decode())
        if count != expected:
            raise ValueError(f"{path}: found {pattern!r} {count} times, expected {expected}")
        files[path] = text.encode()


def build_wheel(archive: bytes, folder: Path) -> Path:
    """
    Write the wheel into `folder`. Equal archives give equal wheels: the order of the files is
    fixed, their dates are too.
    """
    files = read_archive(archive)
    repair(files, REPAIRS)
    contents = {"detectron2/_C.py": STUB.encode()}
    for source, target in PACKAGES.items():
        for path, data in files.items():
            if path.startswith(source):
                contents[target + path[len(source) :]] = data
    info = "detectron2-0.6.dist-info/"
    metadata = ["Metadata-Version: 2.1", "Name: detectron2", "Version: 0.6"]
    metadata += ["Summary: detectron2 0.6 without compiled operators, for current libraries"]
    metadata += ["Home-page: https://github.com/facebookresearch/detectron2"]
    metadata += ["License: Apache-2.0", "Requires-Python: >=3.10"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS]
    contents[info + "LICENSE"] = files["LICENSE"]
    contents[info + "METADATA"] = "\n".join(metadata + [""]).encode()
    wheel = (
        "Wheel-Version: 1.0\nGenerator: dcn_projects\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    contents[info + "WHEEL"] = wheel.encode()
    record = ""
    for path, data in sorted(contents.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(data)}\n"
    contents[info + "RECORD"] = f"{record}{info}RECORD,,\n".encode()

    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as out:
        for path, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(path, date_time=(2021, 11, 15, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            out.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return folder / WHEEL


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--archive", type=Path, help="use this copy of the archive, no download")
    parser.add_argument("--wheel-dir", type=Path, help="build the wheel into here, install nothing")
    args = parser.parse_args()
    spec = importlib.util.find_spec("detectron2")
    if spec and not args.wheel_dir:
        print(f"detectron2 is there already, used as it is: {os.path.dirname(spec.origin)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = args.archive.read_bytes() if args.archive else download(folder)
        wheel = build_wheel(archive, args.wheel_dir or Path(folder))
        if args.wheel_dir:
            print(f"built {wheel}")
        else:
            subprocess.run([sys.executable, "-m", "pip", "install", str(wheel)], check=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # dcn_projects may not be installed yet
        print("interrupted", file=sys.stderr)
        sys.exit(130)
