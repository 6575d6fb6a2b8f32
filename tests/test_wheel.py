"""
What a wheel holds, and what works where only the wheel is. It is built from a source archive, so
that this is known to be complete, without a compiler and without network.
"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import dcn_projects

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ["build", "dist", "datasets", "output", "wheelhouse"]  # folders at the top
GENERATED_ANYWHERE = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "*.so", "*.o")

PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
CAPTURE = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

# Modules of these names cannot be imported.
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
BLOCKED = """


def generated(folder: str, names: list[str]) -> set[str]:
    """What is not copied of a folder, for shutil.copytree."""
    at_the_top = GENERATED if Path(folder) == ROOT else []
    return GENERATED_ANYWHERE(folder, names) | set(at_the_top)


def run(*command, cwd, **env):
    """Returns what a command wrote; fails with it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    result = subprocess.run([sys.executable, *command], cwd=cwd, env=env, **CAPTURE)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("source")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=generated)
    run("setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=tree, CXX="/nowhere/c++")
    shutil.rmtree(tree)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder)
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """The folder that a wheel of the source archive was installed into."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder]
    run(*PIP, "wheel", *options, source, cwd=folder, CXX="/nowhere/c++")
    (wheel,) = folder.glob("*.whl")
    run(*PIP, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


@pytest.fixture
def python(installed, tmp_path):
    """A function: code -> what it prints in a folder from which only the wheel is seen."""

    def run_code(code: str) -> str:
        where = f"import dcn_projects as d; assert d.__file__.startswith({str(installed)!r})\n"
        paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
        path = os.pathsep.join(paths)
        return run("-c", code + "\n" + where, cwd=tmp_path, PYTHONPATH=path)

    return run_code


def files(folder: Path, pattern: str) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob(pattern) if p.is_file()}


def test_source_archive_has_what_is_built_and_tested(source):
    for folder, pattern in [("configs", "*"), ("dcn_projects", "*.[chp]*"), ("tests", "*.py")]:
        packed = {f for f in files(ROOT / folder, pattern) if not f.endswith((".pyc", ".so"))}
        assert packed and files(source / folder, pattern) == packed
    for name in ["setup.py", "pyproject.toml", "README.md", "NOTICE", "Makefile", "train_net.py"]:
        assert (source / name).read_bytes() == (ROOT / name).read_bytes()


def test_wheel_has_the_modules_the_configs_and_no_sources_of_operators(installed):
    package = installed / "dcn_projects"
    modules = files(ROOT / "dcn_projects", "*.py")
    configs = {f"configs/{name}" for name in files(ROOT / "configs", "*.yaml")}
    others = {"py.typed", "layers/csrc/ops.cpp"}
    packed = {name for name in files(package, "*") if not name.endswith(".pyc")}
    assert packed == modules | configs | others


def test_metadata(installed):
    (folder,) = installed.glob("dcn_projects-*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text())
    assert metadata["Version"] == dcn_projects.__version__
    assert metadata["Name"].replace("-", "_") == "dcn_projects"
    assert metadata["License"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.10"
    assert (ROOT / "LICENSE").read_text() in [f.read_text() for f in folder.rglob("LICENSE")]
    requires = [line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist")]
    assert "torch>=2.4" in requires
    assert not [line for line in requires if line.startswith("detectron2")]  # not on the index
    assert metadata.get_all("Provides-Extra") == ["data", "fast", "onnx", "test"]
    assert metadata.get_payload().startswith("# dcn_projects")


def test_configs_are_found_in_the_wheel_with_their_bases(python, installed):
    # Reading one needs its bases, which are named by their paths from its own folder.
    text = python(
        "from dcn_projects import model_zoo\n"
        "for name in model_zoo.list_configs():\n"
        "    cfg = model_zoo.get_config(name)\n"
        "    print('read', name, cfg.MODEL.META_ARCHITECTURE)\n"
        "print('file', model_zoo.get_config_file('R-FCN/rfcn_R_101_C5_voc.yaml'))\n"
    )
    lines = text.splitlines()
    names = {line.split()[1] for line in lines if line.startswith("read ")}
    everything = files(ROOT / "configs", "*.yaml")
    assert names == {name for name in everything if "Base-" not in name}
    path = installed / "dcn_projects/configs/R-FCN/rfcn_R_101_C5_voc.yaml"
    assert f"file {path}" in lines and path.is_file()


def test_trainer_can_be_imported_from_any_folder(python):
    text = python("from dcn_projects.engine import Trainer, launch; print(Trainer.__mro__, launch)")
    assert "detectron2.engine.defaults.DefaultTrainer" in text


def test_importing_the_package_or_naming_a_config_imports_neither_torch_nor_detectron2(python):
    python(
        f"{BLOCK}['torch', 'torchvision', 'detectron2', 'fvcore', 'numpy', 'yaml']\n"
        "import dcn_projects\n"
        "from dcn_projects import model_zoo\n"
        "model_zoo.get_config_file(model_zoo.list_configs()[0])\n"
    )


def test_layers_need_torch_and_torchvision_alone(python):
    text = python(
        f"{BLOCK}['detectron2', 'fvcore', 'iopath', 'yacs', 'cv2', 'pycocotools']\n"
        "import torch\n"
        "from dcn_projects.layers import deform_conv\n"
        "x = torch.arange(9.0).view(1, 1, 3, 3)\n"
        "offset = torch.ones(1, 2, 3, 3)\n"  # each cell shows the one below to the right
        "print('moved', deform_conv(x, offset, torch.ones(1, 1, 1, 1)).flatten().tolist())\n"
    )
    assert "moved [4.0, 5.0, 0.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0]" in text


def test_wheelhouse_collects_what_the_metadata_name(python):
    text = python(
        f"import sys; sys.path.append({str(ROOT / 'tools')!r})\n"
        "import make_wheelhouse\n"
        "print('names', *make_wheelhouse.requirements('3.12'))"
    )
    (line,) = (line for line in text.splitlines() if line.startswith("names "))
    names = set(line.split()[1:])
    assert {"numpy", "pycocotools", "pytest", "shapely", "detectron2==0.6"} <= names
    assert not [name for name in names if name.startswith(("torch", "dcn"))]
