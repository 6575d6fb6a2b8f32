"""Files of labels, as they should be and as they should not."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse
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


def write_mat(path, labels, name="GTcls", compressed=True):
    # As in SBD, whose structs also have boundaries and the classes that are present.
    boundaries = np.empty((2, 1), object)
    boundaries[:, 0] = [scipy.sparse.csc_matrix(labels == k) for k in range(2)]
    fields = {
        "Boundaries": boundaries,
        "Segmentation": labels,
        "CategoriesPresent": np.unique(labels),
    }
    scipy.io.savemat(path, {name: fields}, do_compression=compressed)
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


@pytest.mark.parametrize("compressed", [False, True])
def test_mat_files_of_sbd(compressed, tmp_path):
    labels = np.random.default_rng(0).integers(0, 21, (37, 50), np.uint8)
    for array in (labels, labels[:1, :3], labels[:5, :1]):  # a few bytes are stored in another way
        path = write_mat(tmp_path / "a.mat", array, compressed=compressed)
        assert np.array_equal(read_labels(path, 21, 255), array)
        assert read_labels(path, 21, 255).flags["C_CONTIGUOUS"]


def mutated(content, rng):
    """Cut off, with one or two other bytes, or with an odd number in the place of four."""
    kind, place = rng.randrange(4), rng.randrange(len(content) - 4)
    if kind == 0:
        return content[:place]
    content = bytearray(content)
    if kind == 1:
        number = rng.choice([0, 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
        struct.pack_into("<I", content, place, number)
    for _ in range(kind):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_mat_files_are_refused(compressed, tmp_path):
    """SciPy's reader ends the process on some. What is packed has a checksum, all else has none."""
    labels = np.random.default_rng(0).integers(0, 21, (12, 17), np.uint8)
    path = tmp_path / "a.mat"
    content = Path(write_mat(path, labels, compressed=compressed)).read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(2000):
        path.write_bytes(mutated(content, rng))
        try:
            read = read_labels(path, 21, 255)
        except OSError as e:
            assert str(path) in str(e) and "\n" not in str(e), str(e)
            refused += 1
        else:
            assert read.dtype == np.uint8 and read.ndim == 2
            assert not compressed or np.array_equal(read, labels)
    assert 400 < refused < 2000


def test_a_mat_file_that_unpacks_to_too_much(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(Path(write_mat(path, LABELS)).read_bytes()[:128])
    packed = zlib.compress(bytes(2**27), 9)
    with open(path, "ab") as file:
        file.write(struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(OSError, match="or unpacks to more than 64 MiB"):
        read_labels(path, 21, 255)


@pytest.mark.parametrize("palette", [False, True])
def test_pngs_whose_checksums_do_not_fit(palette, tmp_path):
    """One bit is wrong. Without a look at the checksums other labels would be read."""
    path = tmp_path / "a.png"
    labels = np.random.default_rng(0).integers(0, 21, (30, 40), np.uint8)
    content = Path(write_png(path, labels, palette)).read_bytes()
    start, end = content.index(b"IDAT") + 4, content.index(b"IEND") - 8
    unnoticed = 0
    for place in range(start, end):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with Image.open(io.BytesIO(damaged)) as image:
            try:
                unnoticed += not np.array_equal(np.array(image), labels)
            except (OSError, SyntaxError):  # of what cannot be unpacked
                pass
        with pytest.raises(OSError, match=r"a\.png cannot be read as labels"):
            read_labels(path, 21, 255)
    assert unnoticed  # by Pillow alone


def test_labels_of_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(OSError, match=r"a\.png has more than 4 pixels, which INPUT.MAX_PIXELS"):
        read_labels(write_png(tmp_path / "a.png", LABELS), 21, 255)


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
