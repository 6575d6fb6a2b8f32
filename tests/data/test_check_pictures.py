"""What is said of image files and label files before anything is trained."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcn_projects.data import check_labels, check_pictures, check_widths

MEND = ". Replace the file, or take the image out of the data set"


@pytest.fixture
def records(tmp_path):
    """Three images of 40 x 30 pixels with their labels, of the classes 0 and 1; 255 is ignored."""
    rng = np.random.default_rng(0)
    records = []
    for i, suffix in enumerate((".jpg", ".png", ".bmp")):
        image, labels = tmp_path / f"{i}{suffix}", tmp_path / f"{i}_labels.png"
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(image)
        pixels = rng.choice(np.array([0, 1, 255], np.uint8), (30, 40))
        Image.fromarray(pixels).save(labels)
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": str(labels),
                "width": 40,
                "height": 30,
            }
        )
    return records


def message_of(check, *args):
    with pytest.raises(OSError) as error:
        check(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_can_be_used(records, caplog):
    check_pictures(records)
    check_labels("mine", records, 2, 255)
    del records[1]["width"], records[1]["height"]
    records[2]["file_name"] = "s3://bucket/2.bmp"  # which this machine may not reach
    check_pictures(records)
    check_labels("mine", records, 2, 255)
    assert not caplog.records


def test_files_that_are_named_by_paths(records, tmp_path):
    for record in records:
        record["file_name"] = Path(record["file_name"])
        record["sem_seg_file_name"] = Path(record["sem_seg_file_name"])
    check_pictures(records)
    check_labels("mine", records, 2, 255)
    records[1]["file_name"] = tmp_path / "none.jpg"
    assert "none.jpg does not exist" in message_of(check_pictures, records)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_missing_image(records, place, tmp_path):
    path = records[place]["file_name"] = str(tmp_path / "none.jpg")
    assert message_of(check_pictures, records) == f"{path} does not exist{MEND}"


@pytest.mark.parametrize("name", ["http://x.org/none.jpg", "s3://bucket/none.jpg"])
def test_an_address_as_the_name_of_a_file_in_a_folder(name, records, tmp_path):
    """As COCO files of web programs have them, joined with the folder of the images."""
    path = records[1]["file_name"] = f"{tmp_path}/{name}"
    assert message_of(check_pictures, records) == f"{path} does not exist{MEND}"


def test_a_pipe_is_not_waited_for(records, tmp_path):
    path = records[1]["file_name"] = str(tmp_path / "pipe.jpg")
    os.mkfifo(path)
    assert message_of(check_pictures, records) == f"{path} is no file{MEND}"


def test_a_path_of_windows(records, tmp_path):
    path = records[1]["file_name"] = f"{tmp_path}/images\\1.png"
    assert message_of(check_pictures, records) == (
        f"{path} does not exist: on this system folders end with / and not with \\{MEND}"
    )


def test_paths_that_are_no_texts(records):
    for record in records:
        record["file_name"] = Path(record["file_name"])
    check_pictures(records)
    check_labels("mine", records, 2, 255)


@pytest.mark.parametrize("place", [0, 1])
def test_an_image_that_is_cut_off(records, place):
    path = records[place]["file_name"]
    with open(path, "rb") as f:
        content = f.read()
    with open(path, "wb") as f:
        f.write(content[:-200])
    message = message_of(check_pictures, records)
    assert message.startswith(f"{path} ") and "cut off" in message


def test_an_empty_file_and_a_text(records):
    path = records[2]["file_name"]
    open(path, "wb").close()
    assert message_of(check_pictures, records) == f"{path} is empty{MEND}"
    with open(path, "w") as f:
        f.write("<html>not found</html>")
    assert message_of(check_pictures, records).startswith(f"{path} is no image")


def test_an_image_with_16_bits(records, tmp_path):
    path = records[1]["file_name"] = str(tmp_path / "deep.png")
    Image.fromarray(np.full((30, 40), 4000, np.uint16)).save(path)
    message = message_of(check_pictures, records)
    assert message.startswith(f"{path} ") and "more than 8 bits (mode I;16)" in message


def test_another_size_than_in_the_annotations(records):
    records[1]["width"], records[1]["height"] = 30, 40
    assert message_of(check_pictures, records) == (
        f"{records[1]['file_name']} has 40 x 30 pixels, and in the annotations it has 30 x 40{MEND}"
    )


def test_an_image_that_is_turned_when_it_is_read(records):
    """As phones write them: EXIF says that the picture of 40 x 30 is to be shown as 30 x 40."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(records[0]["file_name"], exif=exif)
    assert "30 x 40 pixels, and in the annotations it has 40 x 30" in message_of(
        check_pictures, records
    )
    records[0]["width"], records[0]["height"] = 30, 40
    check_pictures(records)


def test_labels_that_are_missing(records):
    path = records[1]["sem_seg_file_name"] = records[1]["sem_seg_file_name"] + "x"
    image = records[1]["file_name"]
    expected = f"{path} is missing, the labels of {image}"
    assert message_of(check_labels, "mine", records, 2, 255) == expected
    del records[1]["sem_seg_file_name"]
    expected = f"{image}: the data set names no file with its labels"
    assert message_of(check_labels, "mine", records, 2, 255) == expected


def test_labels_that_cannot_be_used(records):
    path = records[2]["sem_seg_file_name"]
    Image.fromarray(np.full((30, 40), 2, np.uint8)).save(path)
    assert f"{path} has the label 2 at 1200 pixels" in message_of(
        check_labels, "mine", records, 2, 255
    )
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(path)
    assert message_of(check_labels, "mine", records, 2, 255) == (
        f"{path} has 30 x 40 pixels, but its image {records[2]['file_name']} has 40 x 30."
    )
    Image.new("RGB", (40, 30)).save(path)
    assert f"{path} cannot be read as labels" in message_of(check_labels, "mine", records, 2, 255)


def flip_a_bit(path):
    """Of the pixels of a PNG, near their end."""
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"IEND") - 15] ^= 1
    Path(path).write_bytes(content)


def test_a_png_that_is_damaged_inside(records):
    path = records[1]["file_name"]
    flip_a_bit(path)
    assert message_of(check_pictures, records).startswith(f"{path} is no image, or was cut off (br")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_damaged_labels_are_found_also_where_they_are_not_read(records, place, monkeypatch):
    monkeypatch.setattr(sys.modules["dcn_projects.data.datasets.check_pictures"], "_NUM_LABELS", 1)
    check_labels("mine", records, 2, 255)
    path = records[place]["sem_seg_file_name"]
    flip_a_bit(path)
    message = message_of(check_labels, "mine", records, 2, 255)
    assert message.startswith(f"{path} cannot be read as labels (broken PNG file")


@pytest.mark.parametrize(
    "values, found",
    [
        ((0, 255), "the label 0 alone, and the ignored value 255 at 50.0 %"),
        ((1, 1), "the label 1 alone, and the ignored value 255 at 0.0 %"),
        ((255, 255), "no label of a class, and the ignored value 255 at 100.0 %"),
    ],
)
def test_labels_with_nothing_to_be_told_apart(records, values, found, caplog):
    """A mask of black and white, 0 and 255, is the usual form of two classes elsewhere."""
    pixels = np.tile(np.array(values, np.uint8), (30, 20))
    for record in records:
        Image.fromarray(pixels).save(record["sem_seg_file_name"])
    check_labels("mine", records, 2, 255)
    (warning,) = caplog.messages
    assert warning.startswith(f"data set mine: 3 label files have {found} of the pixels")
    assert warning.endswith("Labels are the numbers 0 to 1 of the classes, not grey levels")


@pytest.mark.parametrize("width, height, seen", [(2000, 3, "1000 x 2"), (3, 1000, "3 x 1000")])
def test_images_that_are_too_narrow(records, width, height, seen, caplog):
    check_widths("mine", records, 600, 1000)
    del records[0]["width"]
    assert not caplog.messages
    records[1] |= {"width": width, "height": height}
    check_widths("mine", records, 600, 1000)
    (warning,) = caplog.messages
    assert f"1.png has {width} x {height} pixels, of which the network sees {seen}" in warning
    assert "narrower than 32 there: 1 in this data set" in warning
    check_widths("mine", records[:1] + records[2:], 0, 1333)  # not resized: 30 pixels are fewer
    assert "2.bmp has 40 x 30 pixels, of which the network sees 40 x 30" in caplog.messages[1]
