import re
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision

from dcn_projects import collect_env
from dcn_projects.layers import library
from tests.devices import DEVICES


def test_prints_versions_kernels_and_self_test(capsys):
    assert collect_env.main() == 0
    out = capsys.readouterr().out
    for name in ["Python", "PyTorch", "torchvision", "detectron2", "numpy", "pycocotools"]:
        assert re.search(rf"^{name} +\S", out, re.M), name
    assert torch.__version__ in out and str(library.PATH if library.COMPILED else "") in out
    for name in library.OPERATORS:
        assert re.search(rf"^{name} +(compiled|torchvision|PyTorch) ", out, re.M), name
    seconds = re.search(r"self test on cpu: .*deform_conv ok.*\((.*) s\)", out)[1]
    assert float(seconds) < 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", collect_env.SELF_TESTS)
def test_self_test_passes(device, name):
    assert collect_env.self_test(name, device) == "ok"


def test_self_test_covers_every_operator():
    assert set(collect_env.SELF_TESTS) == {name for name in library.OPERATORS if name[0] != "_"}


@pytest.mark.parametrize("name", collect_env.SELF_TESTS)
@pytest.mark.parametrize("wrong", ["result", "gradient", "nan", "error"])
def test_self_test_fails(monkeypatch, capsys, name, wrong):
    function, reference = collect_env.SELF_TESTS[name]

    def broken(x, move, weight):
        if wrong == "error":
            raise RuntimeError("no kernel image")
        out = function(x, move, weight)
        if wrong == "gradient":  # right value, wrong slope
            return 2 * out - out.detach()
        return out * (1.001 if wrong == "result" else float("nan"))

    monkeypatch.setitem(collect_env.SELF_TESTS, name, (broken, reference))
    assert collect_env.main() == 1
    out = capsys.readouterr().out
    what = {"gradient": "gradient of input", "error": "no kernel image"}.get(wrong, "result")
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
