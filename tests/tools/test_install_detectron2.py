"""The wheel is built from a small archive here: the real one has to be downloaded."""

import base64
import hashlib
import importlib.util
import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/install_detectron2.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_archive() -> bytes:
    files = {
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/layers/__init__.py": "from detectron2 import _C\n",
        "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
        "projects/PointRend/point_rend/__init__.py": "NAME = 'point_rend'\n",
        "tools/train_net.py": "raise SystemExit\n",
        "LICENSE": "Apache\n",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo("pb1-detectron2-0.6/" + path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture
def archive(tool, monkeypatch):
    archive = make_archive()
    monkeypatch.setattr(tool, "SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(tool, "REPAIRS", [])
    return archive


def test_other_archive_is_refused(tool, tmp_path):
    with pytest.raises(ValueError, match="sha256 is [0-9a-f]{64}, expected 5d2e9e51"):
        tool.build_wheel(make_archive(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_command_refuses_other_archive(tmp_path):
    (tmp_path / "other.tar.gz").write_bytes(make_archive())
    command = [sys.executable, TOOL, "--archive", tmp_path / "other.tar.gz", "--wheel-dir", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0 and "expected 5d2e9e51" in result.stderr
    assert not (tmp_path / "out").exists()


def test_wheel_is_the_same_each_time(tool, archive, tmp_path):
    first = tool.build_wheel(archive, tmp_path / "a").read_bytes()
    assert first == tool.build_wheel(archive, tmp_path / "b").read_bytes()


def test_wheel_installs_and_its_stub_explains_itself(tool, archive, tmp_path):
    wheel = tool.build_wheel(archive, tmp_path)
    with zipfile.ZipFile(wheel) as contents:
        names = contents.namelist()
        metadata = contents.read("detectron2-0.6.dist-info/METADATA").decode()
        for line in contents.read("detectron2-0.6.dist-info/RECORD").decode().splitlines()[:-1]:
            path, digest, size = line.rsplit(",", 2)
            data = contents.read(path)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert (digest, int(size)) == ("sha256=" + expected.rstrip("="), len(data))
    assert "detectron2/model_zoo/configs/Base.yaml" in names
    assert "detectron2/projects/point_rend/__init__.py" in names
    assert not any(name.startswith(("tools", "projects")) for name in names)
    assert "Requires-Dist: fvcore>=0.1.5,<0.1.6\n" in metadata
    assert not re.search("Requires-Dist: (black|torch|opencv)", metadata)

    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], check=True)
    code = "import detectron2.layers as l, detectron2.projects.point_rend\nl._C.nms_rotated"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=False
    )
    assert "AttributeError" in result.stderr and "pure-Python build" in result.stderr


@pytest.mark.parametrize("text, count", [("", 0), ("x = np.bool\ny = np.bool\n", 2)])
def test_repair_that_does_not_fit_is_an_error(tool, text, count):
    files = {"a.py": text.encode()}
    with pytest.raises(ValueError, match=f"a.py: found .* {count} times, expected 1"):
        tool.repair(files, [("a.py", tool.NUMPY_ALIAS, r"\1", 1)])


# A line of each repaired file, as it was and as it has to be.
LINES = {
    "data/build.py": ("np.zeros((n,), dtype=np.int)", "np.zeros((n,), dtype=int)"),
    "data/datasets/pascal_voc.py": ("np.loadtxt(f, dtype=np.str)", "np.loadtxt(f, dtype=str)"),
    "evaluation/pascal_voc_evaluation.py": ("x.astype(np.bool)", "x.astype(bool)"),
    "evaluation/sem_seg_evaluation.py": (
        "np.full(n, np.nan, dtype=np.float) + np.float32(1)",
        "np.full(n, np.nan, dtype=float) + np.float32(1)",
    ),
    "structures/masks.py": ("decode(rle).astype(np.bool)", "decode(rle).astype(bool)"),
    "utils/video_visualizer.py": ("np.zeros((n,), dtype=np.bool)", "np.zeros((n,), dtype=bool)"),
    "utils/visualizer.py": ("np.bool_, np.bool", "np.bool_, bool"),
    "layers/mask_ops.py": ("mask = np.array(mask, copy=False)", "mask = np.asarray(mask)"),
    "data/transforms/transform.py": ("interp=Image.LINEAR, x", "interp=Image.BILINEAR, x"),
    "model_zoo/model_zoo.py": (
        "import os\nimport pkg_resources\nfile = pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", path)\n    )\n',
        "import os\nfile = os.path.join(\n"
        '        os.path.dirname(__file__), os.path.join("configs", path)\n    )\n',
    ),
    "engine/train_loop.py": (
        "from torch.cuda.amp import GradScaler, autocast\nwith autocast():",
        'from torch.amp import GradScaler, autocast\nwith autocast("cuda"):',
    ),
    "modeling/anchor_generator.py": (
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
    ),
    "evaluation/coco_evaluation.py": (
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt",
        "from pycocotools.cocoeval import COCOeval as COCOeval_opt",
    ),
}


def test_repairs(tool):
    repaired = {"detectron2/" + path for path in LINES} | {"detectron2/export/api.py"}
    assert {path for path, *_ in tool.REPAIRS} == repaired
    for path, (before, after) in LINES.items():
        files = {"detectron2/" + path: before.encode()}
        tool.repair(files, [(p, a, b, 1) for p, a, b, _ in tool.REPAIRS if p in files])
        assert files["detectron2/" + path].decode() == after


# What export/api.py of 0.6 imports, and the names in it.
EXPORT = """
import copy
from caffe2.proto import caffe2_pb2
from copy import deepcopy

from .caffe2_inference import ProtobufDetectionModel
from .caffe2_modeling import META_ARCH_CAFFE2_EXPORT_TYPE_MAP, convert_batched_inputs_to_c2_format
from .shared import get_pb_arg_vali, get_pb_arg_vals, save_graph

__all__ = ["Caffe2Model", "Caffe2Tracer", "add_export_config"]
__all__ += ["export_caffe2_model", "export_onnx_model"]

def add_export_config(cfg):
    return cfg

class Caffe2Tracer:
    def __init__(self, cfg, model, inputs):
        self.map = META_ARCH_CAFFE2_EXPORT_TYPE_MAP

class Caffe2Model:
    def __init__(self, predict_net, init_net):
        self.net = predict_net

    @staticmethod
    def load_protobuf(dir):
        return Caffe2Model(caffe2_pb2.NET, 1)

def export_caffe2_model(cfg, model, inputs):
    return Caffe2Tracer(cfg, model, inputs)

def export_onnx_model(cfg, model, inputs):
    return Caffe2Tracer(cfg, model, inputs)
"""
USE_EXPORT = """
from export import *
assert add_export_config("cfg") == "cfg"
calls = [Caffe2Tracer, export_caffe2_model, export_onnx_model]
calls = [lambda f=f: f(1, 2, 3) for f in calls]
calls += [lambda: Caffe2Model(1, 2), lambda: Caffe2Model.load_protobuf("folder")]
for call in calls:
    try:
        print(call())
    except ImportError as error:
        print("ImportError:", error)
"""


@pytest.mark.parametrize("has_caffe2", [False, True])
def test_repaired_export(tool, tmp_path, has_caffe2):
    path = "detectron2/export/api.py"
    files = {path: EXPORT.encode()}
    tool.repair(files, [repair for repair in tool.REPAIRS if repair[0] == path])
    sources = {"export/__init__": "from .api import *\n", "export/api": files[path].decode()}
    names = "ProtobufDetectionModel = META_ARCH_CAFFE2_EXPORT_TYPE_MAP = save_graph = 1\n"
    names += "convert_batched_inputs_to_c2_format = get_pb_arg_vali = get_pb_arg_vals = 1\n"
    for name in ("caffe2_inference", "caffe2_modeling", "shared"):
        sources[f"export/{name}"] = "import caffe2.proto\n" + names
    if has_caffe2:
        sources |= {"caffe2/__init__": "", "caffe2/proto/__init__": ""}
        sources["caffe2/proto/caffe2_pb2"] = "NET = 1\n"
    for name, text in sources.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    result = subprocess.run(
        [sys.executable, "-c", USE_EXPORT], cwd=tmp_path, capture_output=True, text=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 5, result.stderr
    if has_caffe2:
        assert not any("Error" in line for line in lines)
    else:
        line = "ImportError: detectron2 exports to Caffe2 with the package caffe2 only, which "
        assert all(text.startswith(line) for text in lines) and len(set(lines)) == 1
        assert "use TracingAdapter or scripting_with_instances of detectron2.export" in lines[0]


def test_detectron2_that_is_there_is_kept(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").touch()
    result = subprocess.run(
        [sys.executable, TOOL, "--archive", "missing"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "detectron2") in result.stdout
