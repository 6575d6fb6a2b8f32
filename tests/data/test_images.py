"""Files of every kind of pixels, read for training and for prediction, and files of no use."""

import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.data import CheckedDatasetMapper, SemSegMapper, check_image, read_bgr_image
from dcn_projects.data.images import image_problem, image_size, limit_pixels, size_problem

H, W = 40, 56
ORIENTATION = 0x0112
RGB = np.kron(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), np.ones((8, 8, 1)))
RGB = RGB.astype(np.uint8)
GREY = RGB[..., 0]
DEEP = GREY.astype(np.uint16) * 16  # 12 bits, in a file of 16


def mapped(mapper, path):
    """(H, W, 3), BGR, as a mapper reads it."""
    cfg = get_cfg()
    add_dcn_config(cfg)
    record = mapper(cfg, is_train=False, augmentations=[])({"file_name": str(path)})
    return record["image"].numpy().transpose(1, 2, 0)


def save(array, path, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)


def exif(orientation):
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data.tobytes()


def palette(path, **options):
    """Four colours: those of the first four cells in RGB."""
    image = Image.fromarray((GREY // 64).astype(np.uint8)).convert("P")
    image.putpalette(RGB[::8, ::8].reshape(-1, 3)[:4].tobytes())
    image.save(path, **options)


def with_alpha(path):
    alpha = np.full((H, W, 1), 7, np.uint8)
    save(np.dstack([RGB, alpha]), path)


def grey_with_alpha(path):
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]).save(path)


def cmyk(path, **options):
    ink = [Image.fromarray(255 - RGB[..., i]) for i in range(3)]
    Image.merge("CMYK", [*ink, Image.new("L", (W, H))]).save(path, **options)


THREE = np.dstack([GREY] * 3)
OF_PALETTE = RGB[::8, ::8].reshape(-1, 3)[:4][GREY // 64]
LIKE_JPEG = 12  # grey levels: how far a JPEG of quality 95 may be, at the edges of the cells
READ = {
    "1.png": (
        lambda p: save(
            GREY,
            p,
            "1",
        ),
        None,
        0,
    ),
    "L.png": (lambda p: save(GREY, p), THREE, 0),
    "L.jpg": (lambda p: save(GREY, p, quality=95), THREE, LIKE_JPEG),
    "LA.png": (grey_with_alpha, THREE, 0),
    "P.png": (palette, OF_PALETTE, 0),
    "transparent.png": (lambda p: palette(p, transparency=1), OF_PALETTE, 0),
    "RGB.png": (lambda p: save(RGB, p), RGB, 0),
    "RGB.bmp": (lambda p: save(RGB, p), RGB, 0),
    "RGB.ppm": (lambda p: save(RGB, p), RGB, 0),
    "RGB.tif": (lambda p: save(RGB, p), RGB, 0),
    "RGB.webp": (lambda p: save(RGB, p, lossless=True), RGB, 0),
    "RGBA.png": (with_alpha, RGB, 0),
    "RGBA.tif": (with_alpha, RGB, 0),
    "CMYK.tif": (cmyk, RGB, 0),
    "CMYK.jpg": (lambda p: cmyk(p, quality=95), RGB, LIKE_JPEG),
    "YCbCr.jpg": (lambda p: save(RGB, p, quality=95, subsampling=0), RGB, LIKE_JPEG),
    "RGB16.png": (lambda p: cv2.imwrite(str(p), RGB[..., ::-1].astype(np.uint16) * 257), RGB, 0),
}


@pytest.mark.parametrize("name", READ)
def test_pixels(name, tmp_path):
    write, expected, tolerance = READ[name]
    path = tmp_path / name
    write(path)
    if expected is None:  # of 1-bit images, which Pillow dithers
        expected = np.dstack([np.array(Image.fromarray(GREY).convert("1")) * np.uint8(255)] * 3)
    found = read_bgr_image(path)
    assert found.dtype == np.uint8 and found.shape == (H, W, 3)
    np.testing.assert_allclose(found[..., ::-1].astype(int), expected, atol=tolerance)
    for mapper in (CheckedDatasetMapper, SemSegMapper):
        np.testing.assert_array_equal(mapped(mapper, path), found)
    assert image_problem(path) == "" and image_size(path) == (W, H)
    check_image(path)


TURNS = {  # what EXIF data say of an upright picture's pixels
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_orientation(orientation, suffix, tmp_path):
    path = tmp_path / f"turned.{suffix}"
    save(RGB, path, exif=exif(orientation), quality=95, subsampling=0)
    expected = TURNS[orientation](RGB)
    found = read_bgr_image(path)
    atol = LIKE_JPEG if suffix == "jpg" else 0
    np.testing.assert_allclose(found[..., ::-1].astype(int), expected, atol=atol)
    np.testing.assert_array_equal(mapped(CheckedDatasetMapper, path), found)
    assert image_size(path) == expected.shape[1::-1] and image_problem(path) == ""


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'


def test_orientations_that_are_elsewhere_in_the_file(tmp_path):
    """EXIF data behind the pixels of a PNG; XMP data; and EXIF data that are broken."""
    path = tmp_path / "late.png"
    save(RGB, path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif(6)[6:]) + content[-12:])
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
    early, late = tmp_path / "xmp.png", tmp_path / "late_xmp.png"
    early.write_bytes(content[:33] + chunk(b"iTXt", text) + content[33:])
    late.write_bytes(content[:-12] + chunk(b"iTXt", text) + content[-12:])
    jpeg = tmp_path / "xmp.jpg"
    save(RGB, jpeg, xmp=XMP)
    for turned in (path, early, late, jpeg):
        assert read_bgr_image(turned).shape == (W, H, 3), turned
        assert image_size(turned) == (H, W) and image_problem(turned) == "", turned
    broken = tmp_path / "broken.jpg"
    of_text = exif(6).replace(b"\x12\x01\x03\x00", b"\x12\x01\x07\x00")
    of_text = of_text.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x07")
    for data in (exif(6)[:-9], of_text, exif(9)):
        save(RGB, broken, exif=data)
        assert image_size(broken) == read_bgr_image(broken).shape[1::-1] == (W, H)


def laboratory(path):
    Image.merge("LAB", [Image.fromarray(GREY)] * 3).save(path)


LEVELS = "grey levels of more than 8 bits (mode {}), and which of them are black and white is not"
REFUSED = {
    "deep.png": (lambda p: save(DEEP, p), LEVELS.format("I;16")),
    "deep.tif": (lambda p: save(DEEP, p), LEVELS.format("I;16")),
    "big.tif": (
        lambda p: Image.frombytes("I;16B", (W, H), DEEP.astype(">u2").tobytes()).save(p),
        LEVELS.format("I;16B"),
    ),
    "deep.pgm": (lambda p: cv2.imwrite(str(p), DEEP), LEVELS.format("I")),
    "whole.tif": (lambda p: save(DEEP.astype(np.int32), p), LEVELS.format("I")),
    "float.tif": (lambda p: save(GREY.astype(np.float32) / 255, p), LEVELS.format("F")),
    "LAB.tif": (laboratory, "colours of the mode LAB"),
    "turned.tif": (
        lambda p: save(RGB, p, tiffinfo={ORIENTATION: 6}),
        "is a TIFF file that has to be turned",
    ),
    "empty.jpg": (lambda p: p.touch(), "is empty"),
    "text.jpg": (lambda p: p.write_text("no image"), "is no image"),
    "folder.png": (lambda p: p.mkdir(), "is no image, but a folder"),
    "none.png": (lambda p: None, "does not exist"),
    "bomb.png": (
        lambda p: p.write_bytes(huge(100000, 100000)),
        "has more than 178956970 pixels, which INPUT.MAX_PIXELS allows: scale it down, or raise",
    ),
    "lie.png": (lambda p: p.write_bytes(huge(12000, 12000)), "is no image, or was cut off"),
    "lie.jpg": (lambda p: lie(p), "bytes for 12000 x 12000 pixels)"),
    "lie.tif": (lambda p: high(p), f"bytes for {W} x {500 * H} pixels)"),
}


def lie(path):
    """A JPEG with another size in its header: Pillow would read 144 megapixels of grey."""
    save(RGB, path)
    content = bytearray(path.read_bytes())
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, 12000, 12000)
    path.write_bytes(content)


def high(path):
    """A TIFF with another height in its header: Pillow would read black pixels below."""
    save(RGB, path)
    content, entry = path.read_bytes(), struct.pack("<HHI", 257, 4, 1)
    assert content.count(entry + struct.pack("<I", H)) == 1
    path.write_bytes(
        content.replace(entry + struct.pack("<I", H), entry + struct.pack("<I", 500 * H))
    )


def huge(width, height):
    """The header of a PNG, and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used(name, tmp_path):
    write, named = REFUSED[name]
    path = tmp_path / name
    write(path)
    assert named in image_problem(path) and not image_problem(path).endswith(".")
    readers = [read_bgr_image, check_image]
    readers += [lambda p, m=m: mapped(m, p) for m in (CheckedDatasetMapper, SemSegMapper)]
    for read in readers:
        with pytest.raises(OSError) as e:
            read(path)
        line = str(e.value)
        assert str(path) in line and named in line and "\n" not in line and line.endswith(".")
        assert "<_io" not in line
    with pytest.raises(FileNotFoundError if name == "none.png" else OSError, match=name):
        check_image(path)


def test_the_limit_of_pixels(tmp_path, monkeypatch):
    """It is that of the config, in all readers, also above Pillow's own, and without a warning."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "a.png"
    save(RGB, path)
    problem = f"has more than {W * H - 1} pixels, which INPUT.MAX_PIXELS allows: scale it down"
    cfg = get_cfg()
    add_dcn_config(cfg)
    for limit in (W * H - 1, W * H, 2 * W * H):
        cfg.INPUT.MAX_PIXELS = limit
        for mapper in (CheckedDatasetMapper, SemSegMapper):
            read = mapper(cfg, is_train=False, augmentations=[])
            if limit >= W * H:
                assert read({"file_name": str(path)})["image"].shape == (3, H, W)
            else:
                with pytest.raises(OSError, match=f"a.png: it {problem}"):
                    read({"file_name": str(path)})
        limit_pixels(limit)
        assert image_problem(path).startswith(problem if limit < W * H else "")
        assert size_problem(W, H).startswith(problem if limit < W * H else "")
        assert (image_problem(path) == size_problem(W, H) == "") == (limit >= W * H)


def test_other_warnings_are_not_repeated(tmp_path, recwarn):
    """Of the kinds that Python shows once for each place, as a training goes on."""
    path = tmp_path / "a.png"
    save(RGB, path)
    limit_pixels(RGB.size)
    warnings.simplefilter("default")
    for _ in range(3):
        limit_pixels(178_956_970)
        warnings.warn("told once", stacklevel=1)
    assert len(recwarn) == 1


def is_readable(path):
    try:
        read_bgr_image(path)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", ["a.jpg", "progressive.jpg", "a.png", "P.png"])
def test_files_that_were_cut_off(name, tmp_path):
    """Those that cannot be read are found, and no others: a few bytes at the end may be missing."""
    path = tmp_path / name
    if name == "P.png":
        palette(path)
    else:
        save(RGB, path, progressive="progressive" in name)
    content = path.read_bytes()
    lengths = {*range(0, len(content), 41), *range(len(content) - 20, len(content))}
    readable = 0
    for length in lengths:
        path.write_bytes(content[:length])
        assert (image_problem(path) == "") == is_readable(path), length
        readable += is_readable(path)
    assert readable <= 20
    for more in (b"\n", b"\0" * 1000, b"an application's notes" * 9):  # it ends earlier
        path.write_bytes(content + more)
        assert image_problem(path) == "" and is_readable(path)


def test_what_no_process_may_read_or_find(tmp_path):
    """The system's own words, such as those of a disk that fails."""
    path = tmp_path / ("n" * 300 + ".png")
    assert image_problem(path) == "cannot be read (File name too long)"


def test_a_png_whose_pixels_are_spoilt(tmp_path):
    """Pillow says so when it is decoded first, for its EXIF data, and black is read afterwards."""
    path = tmp_path / "a.png"
    save(RGB, path)
    content = bytearray(path.read_bytes())
    pixels = content.index(b"IDAT") + 10
    content[pixels : pixels + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(OSError, match="a.png is no image, or was cut off .broken PNG file"):
        read_bgr_image(path)
    for mapper in (CheckedDatasetMapper, SemSegMapper):
        with pytest.raises(OSError, match="Cannot use .*a.png: it is no image, or was cut off"):
            mapped(mapper, path)
