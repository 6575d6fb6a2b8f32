"""Files of labels, as they should be and as they should not."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dcn_projects.data import read_labels
from dcn_projects.data.datasets.voc_seg import voc_palette

LABELS = np.array([[0, 1, 15], [20, 255, 0]], np.uint8)


def write_png(path, labels, palette=False):
    image = Image.fromarray(labels)
    if palette:
        image.putpalette(np.ravel(voc_palette()).tolist())
    image.save(path)
    return str(path)


def write_mat(path, labels, struct="GTcls"):
    # As in SBD, whose structs also have boundaries and the classes that are present.
    fields = {"Segmentation": labels, "CategoriesPresent": np.unique(labels)}
    scipy.io.savemat(path, {struct: fields}, do_compression=True)
    return str(path)


@pytest.mark.parametrize("palette", [False, True])
def test_indices_of_pngs_arrive_unchanged(palette, tmp_path):
    path = write_png(tmp_path / "a.png", LABELS, palette)
    read = read_labels(path, 21, 255)
    assert read.dtype == np.uint8 and np.array_equal(read, LABELS)


def test_a_path_that_is_no_text(tmp_path):
    path = Path(write_png(tmp_path / "a.png", LABELS))
    assert np.array_equal(read_labels(path, 21, 255), LABELS)


def test_palette_of_voc():
    """A few of the colours that the VOC development kit defines."""
    palette = voc_palette()
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128)}
    expected |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: palette[i] for i in expected} == expected


def test_mat_files_of_sbd(tmp_path):
    labels = np.where(LABELS == 255, 3, LABELS)
    assert np.array_equal(read_labels(write_mat(tmp_path / "a.mat", labels), 21, 255), labels)


def test_label_ids_of_cityscapes(tmp_path):
    table = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    read = read_labels(write_png(tmp_path / "a_gtFine_labelIds.png", ids), 19, 255)
    expected = {label.id: label.trainId for label in table if label.id >= 0}
    assert read.flatten().tolist() == [expected[i] for i in range(34)]


def rgb(path):
    return write_png(path, np.zeros((2, 3, 3), np.uint8))


def cut_off(path):
    write = write_mat if path.suffix == ".mat" else write_png
    write(path, np.tile(LABELS, (50, 50)))
    path.write_bytes(path.read_bytes()[:60])
    return str(path)


@pytest.mark.parametrize(
    "make, name, words",
    [
        (lambda p: write_png(p, LABELS), "a.png", "has the label 20 at 1 pixels, expected 0..18"),
        (lambda p: write_png(p, LABELS), "b_labelIds.png", "label 255 at 1 pixels, expected 0..33"),
        (lambda p: write_mat(p, LABELS), "a.mat", "a.mat has the label 20"),
        (rgb, "a.png", "a.png cannot be read as labels (its mode is RGB, expected grey"),
        (cut_off, "a.png", "a.png cannot be read as labels"),
        (cut_off, "a.mat", "a.mat cannot be read as labels"),
        (lambda p: write_mat(p, LABELS, "GTinst"), "a.mat", "as labels (there is no GTcls)"),
        (lambda p: write_mat(p, LABELS.astype(float)), "a.mat", "Segmentation is float64 (2, 3)"),
        (str, "a.png", "a.png does not exist"),
        (str, "a.mat", "a.mat does not exist"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, name, words, tmp_path):
    path = make(tmp_path / name)
    with pytest.raises(OSError) as error:
        read_labels(path, 19, 255)
    message = str(error.value)
    assert "\n" not in message and path in message and words in message, message
