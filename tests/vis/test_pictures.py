import os
import subprocess
import sys

import numpy as np
import pytest

from dcn_projects.vis import LONGEST, bounded, contact_sheet, side_by_side, text_line, write_picture
from tests.conftest import ROOT


def grey(level, height=10, width=60):
    return np.full((height, width, 3), level, np.uint8)


@pytest.mark.parametrize(
    "size, expected",
    [
        ((4096, 2), (4096, 2)),
        ((4097, 2000), (4096, 2000)),
        ((9000, 12000), (3072, 4096)),
        ((1, 9000), (1, 4096)),
    ],
)
def test_bounded(size, expected):
    image = np.full((*size, 3), 7, np.uint8)
    picture = bounded(image)
    assert picture.shape == (*expected, 3) and (picture == 7).all() and max(expected) <= LONGEST
    assert (picture is image) == (size == expected)


def test_side_by_side():
    plain = side_by_side([grey(50), grey(100, width=20)], None)
    assert plain.shape == (10, 80, 3) and plain[0, 59, 0] == 50 and plain[0, 60, 0] == 100
    titled = side_by_side([grey(50), grey(100)], ["one", "two"])
    np.testing.assert_array_equal(titled[-10:, :60], grey(50))
    np.testing.assert_array_equal(titled[:-10, 60:], text_line("two", 60))


@pytest.mark.parametrize("width", [5, 40, 400])
def test_a_text_fits_into_its_line(width):
    """With white left and right of it, where there is room at all."""
    line = text_line("deformable_rfcn_R_14_C5_digits, model_final.pth", width)
    assert line.shape == (24, width, 3) and line[:, -1].min() == 255
    assert width < 10 or line.min() < 150


def test_contact_sheet():
    sheet = contact_sheet([grey(level) for level in (10, 20, 30)], columns=2)
    assert sheet.shape == (20, 120, 3)
    assert [sheet[y, x, 0] for y, x in ((0, 0), (0, 60), (10, 0), (10, 60))] == [10, 20, 30, 0]


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="nowhere/a.png cannot be written"):
        write_picture(tmp_path / "nowhere/a.png", grey(0))


def test_numbers_do_without_opencv(tmp_path):
    """Only what draws imports it."""
    (tmp_path / "cv2.py").write_text("raise ModuleNotFoundError('no OpenCV')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def error(name):
        command = [sys.executable, "-c", f"from dcn_projects.vis import {name}"]
        return subprocess.run(command, env=env, capture_output=True, text=True).stderr

    assert "no OpenCV" not in error("record_image, effective_dilation, class_metadata, show")
    assert "no OpenCV" in error("draw_heat_map")
