"""What tests of several folders share."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml")
SMALL = (
    "MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64 MODEL.RPN.POST_NMS_TOPK_TEST 8 "
    "TEST.DETECTIONS_PER_IMAGE 5"
).split()
PLAIN = (
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE [False,False,False,False] "
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE PSROIPool"
).split()


def pytest_addoption(parser):
    parser.addoption(
        "--long",
        type=float,
        metavar="HOURS",
        help="run tests/layers/test_fuzz.py on random seeds for so long, shared by its tests",
    )


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder of data sets that has a few digits in the COCO layout."""
    from dcn_projects.data.datasets.warped_digits import make_dataset

    folder = tmp_path_factory.mktemp("datasets")
    make_dataset(str(folder / "digits_coco"), "coco", size=96, count_train=8, count_test=4)
    return folder


@pytest.fixture
def tiny_model(tmp_path):
    """
    tiny_model(deformable=True, spread=0) writes an untrained R-FCN and returns its config, weights
    and options. All filters of its deformable convolution are `spread` cells wider per tap.
    """
    # Not above: pytest reads this file also for tests that load no model.
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from dcn_projects import add_dcn_config

    def make(deformable=True, spread=0.0):
        opts = SMALL if deformable else SMALL + PLAIN
        cfg = get_cfg()
        add_dcn_config(cfg)
        cfg.merge_from_file(CONFIG)
        cfg.merge_from_list(opts)
        torch.manual_seed(0)
        model = build_model(cfg)
        if deformable:
            taps = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
            model.backbone.res5[0].conv2.conv_offset.bias.data = spread * taps.flatten()
        weights = tmp_path / f"model_{deformable}.pth"
        torch.save({"model": model.state_dict()}, weights)
        return CONFIG, str(weights), opts

    return make


@pytest.fixture
def run_program(monkeypatch, capsys):
    """
    run_program(path in the repository, *arguments) runs a program in this process and returns its
    exit code and what it wrote.
    """

    def run(path, *arguments):
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as e:
            code = e.code
            if isinstance(code, str):  # Python writes it, and its exit code is 1
                print(code, file=sys.stderr)
                code = 1
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run
