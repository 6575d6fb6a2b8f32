"""The operators need PyTorch and torchvision alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "fvcore", "iopath", "cv2", "pycocotools"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Refuse())

import torch
import dcn_projects.layers
from dcn_projects.layers import DeformableConv2d, deformable, hook_offsets
from dcn_projects.layers.self_test import self_tests

results = {name: test.run("cpu") for name, test in self_tests().items()}
assert set(results.values()) == {"ok"}, results
model = deformable(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), modulated=True)
names = []
hook_offsets(model, lambda name, *_: names.append(name))
model(torch.rand(1, 3, 8, 8)).sum().backward()
assert names == ["0"] and type(model[0]) is DeformableConv2d
ours = [name for name in sys.modules if name.startswith("dcn_projects")]
assert all(name == "dcn_projects" or name.startswith("dcn_projects.layers") for name in ours), ours
print("ok")
"""


@pytest.mark.parametrize("fallback", ["0", "1"])
def test_layers_without_detectron2(fallback):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        env={"PATH": "", "DCN_PROJECTS_FORCE_FALLBACK": fallback},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "ok\n", result.stderr
