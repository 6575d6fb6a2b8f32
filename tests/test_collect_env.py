import re
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision

from dcn_projects import __version__, collect_env
from dcn_projects.layers import library
from dcn_projects.layers.self_test import SelfTest
from tests.devices import DEVICES


def test_prints_versions_kernels_and_self_test(capsys):
    assert collect_env.main() == 0
    out = capsys.readouterr().out
    for name in ["Python", "PyTorch", "torchvision", "detectron2", "numpy", "pycocotools"]:
        assert re.search(rf"^{name} +\S", out, re.M), name
    folder = Path(collect_env.__file__).parent
    assert re.search(rf"^dcn_projects +{re.escape(f'{__version__} in {folder}')}$", out, re.M)
    assert torch.__version__ in out and str(library.PATH if library.COMPILED else "") in out
    for name in library.OPERATORS:
        assert re.search(rf"^{name} +(compiled|torchvision|PyTorch) ", out, re.M), name
    seconds = re.search(r"self test on cpu: .*deform_conv ok.*\((.*) s\)", out)[1]
    assert float(seconds) < 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", collect_env.SELF_TESTS)
def test_self_test_passes(device, name):
    assert collect_env.SELF_TESTS[name].run(device) == "ok"


def test_self_test_covers_every_operator():
    assert list(collect_env.SELF_TESTS) == library.PUBLIC_OPERATORS


@pytest.mark.parametrize("name", collect_env.SELF_TESTS)
@pytest.mark.parametrize("wrong", ["result", "gradient", "no gradient", "nan", "error"])
def test_self_test_fails(monkeypatch, capsys, name, wrong):
    test = collect_env.SELF_TESTS[name]

    def broken(x, move, weight):
        if wrong == "error":
            raise RuntimeError("no kernel image")
        out = test.operator(x, move, weight)
        if wrong == "gradient":  # right value, wrong slope
            return 2 * out - out.detach()
        if wrong == "no gradient":
            return out.detach() + 0 * move.sum()
        return out * (1.001 if wrong == "result" else float("nan"))

    monkeypatch.setitem(collect_env.SELF_TESTS, name, SelfTest(broken, test.expected))
    assert collect_env.main() == 1
    out = capsys.readouterr().out
    whats = {
        "gradient": "gradient of input",
        "no gradient": "there is no gradient of input",
        "error": "no kernel image",
    }
    what = whats.get(wrong, "result")
    assert f"{name} FAILED: {what}" in out


def test_gpu_architectures_of_a_library():
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    path = next(Path(torchvision.__file__).parent.glob("_C*.so"))
    if not cuobjdump.exists() or torch.version.cuda is None:
        pytest.skip("torchvision has no CUDA")
    expected = set()
    for kind, suffix in [("elf", ""), ("ptx", "+PTX")]:
        command = [cuobjdump, f"--list-{kind}", path]
        text = subprocess.run(command, capture_output=True, text=True).stdout
        expected |= {f"{n[:-1]}.{n[-1]}{suffix}" for n in re.findall(r"sm_(\d+)\.", text)}
    assert expected and set(collect_env.gpu_architectures(path)) == expected
