"""Lists, XML files and pictures in the layout of Pascal VOC: those that are understood or not."""

import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances
from detectron2.data.datasets import register_pascal_voc as register_with_detectron2
from detectron2.structures import BoxMode
from PIL import Image

from dcn_projects.data import (
    check_datasets,
    load_checked,
    read_voc_objects,
    register_pascal_voc,
)
from dcn_projects.data.datasets.pascal_voc import check_voc, load_voc
from dcn_projects.data.datasets.voc_seg import load_voc_sem_seg
from tests.voc_data import BOX, SIZE, annotation_xml, object_xml, write_picture, write_voc

CLASSES = ("cat", "dog")
XML = annotation_xml(object_xml())


@pytest.fixture
def names():
    """A list that takes the names of data sets which are to be forgotten."""
    names = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def error_of(function, *args):
    with pytest.raises(OSError) as e:
        function(*args)
    return str(e.value)


# Lists

LISTS = {
    "plain": ("a\nb\n", ["a", "b"]),
    "no line break at the end": ("b\na", ["b", "a"]),
    "one image": ("a\n", ["a"]),
    "comments and blank lines": ("# the first\n\na\n  \n#b\nb\n", ["a", "b"]),
    "CRLF": ("a\r\nb\r\n", ["a", "b"]),
    "byte order mark": ("\ufeffa\nb\n", ["a", "b"]),
    "byte order mark and comment": ("\ufeff# all\na\n", ["a"]),
    "UTF-16": ("a\r\nb\r\n".encode("utf-16"), ["a", "b"]),
    "spaces": ("my cat\n my dog  2 \n", ["my cat", "my dog  2"]),
    "columns": ("a  1\nb -1\n", ["a", "b"]),
    "columns of difficult images, tabs": ("a\t0\nb\t1\n", ["a", "b"]),
    "columns behind spaces": ("my cat -1\na 1\n", ["my cat", "a"]),
    "names that end as columns": ("scene 1\nscene 0\n", ["scene 1", "scene 0"]),
    "one line without column": ("scene 1\na\n", ["scene 1", "a"]),
    "hash in a name": ("a#1\nb\n", ["a#1", "b"]),
    "folders": ("one/a\ntwo/a\n", ["one/a", "two/a"]),
    "umlauts": ("Käfer\na\n", ["Käfer", "a"]),
}
IMAGES = "a b a#1 one/a two/a Käfer".split() + ["my cat", "my dog  2", "scene 1", "scene 0"]


@pytest.mark.parametrize("case", LISTS)
def test_lists(case, tmp_path):
    """The loader, the evaluator and segmentation read a list in the same way."""
    text, expected = LISTS[case]
    write_voc(tmp_path, dict.fromkeys(IMAGES, XML), text)
    records = load_voc(tmp_path, "train", CLASSES)
    assert [r["image_id"] for r in records] == expected
    assert [r["file_name"] for r in records] == [
        str(tmp_path / f"JPEGImages/{name}.jpg") for name in expected
    ]
    assert list(read_voc_objects(tmp_path, "train", CLASSES)) == expected
    if case != "folders":  # lists of segmentation may have paths instead
        pixels = load_voc_sem_seg(str(tmp_path), "ImageSets/Main/train.txt", "labels")
        assert [r["image_id"] for r in pixels] == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        ("JPEGImages/a.jpg SegmentationClass/a.png\n\nb\n", ["a", "b"]),
        ("/my dir/my cat.jpg /my dir/my cat.png\n", ["my cat"]),
        ("# SBD\nimg/a.jpg cls/a.mat\n", ["a"]),
        ("a.jpg\nimg.001\n", ["a", "img.001"]),
    ],
)
def test_lists_of_segmentation(text, expected, tmp_path):
    (tmp_path / "train.txt").write_text(text)
    records = load_voc_sem_seg(str(tmp_path), "train.txt", "labels")
    assert [r["image_id"] for r in records] == expected
    assert records[0]["sem_seg_file_name"] == str(tmp_path / f"labels/{expected[0]}.png")


EMPTY = "it names no image. Write the name of one in each line"
BAD_LISTS = {
    "empty": ("", EMPTY),
    "comments alone": ("# a\n#b", EMPTY),
    "byte order mark alone": ("\ufeff\r\n", EMPTY),
    "twice": ("a\nb\na\n", "it names a 2 times. Keep one of the lines"),
    "twice, with columns": ("a 1\nb -1\na -1\na 0", "it names a 3 times. Keep one of the lines"),
    "twice, with spaces": ("my cat\nmy cat ", "it names my cat 2 times. Keep one of the lines"),
    "Latin-1": (
        "Käfer".encode("latin-1"),
        "it is no text in UTF-8 (invalid continuation byte). Save it as UTF-8",
    ),
    "picture": (
        b"\xff\xd8\xff\xe0",
        "it is no text in UTF-8 (invalid start byte). Save it as UTF-8",
    ),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists(case, tmp_path):
    text, line = BAD_LISTS[case]
    write_voc(tmp_path, dict.fromkeys(IMAGES, XML), text)
    expected = f"{tmp_path}/ImageSets/Main/train.txt: {line}"
    assert error_of(load_voc, tmp_path, "train", CLASSES) == expected
    assert error_of(read_voc_objects, tmp_path, "train", CLASSES) == expected
    pixels = (str(tmp_path), "ImageSets/Main/train.txt", "labels")
    assert error_of(load_voc_sem_seg, *pixels) == expected


@pytest.mark.parametrize(
    "text, name, advice",
    [
        ("a\nc\n", "c", "Copy it there, or take the line out"),
        ("a 1\nc -1\nb 1", "c", "Copy it there, or take the line out"),
        ("a 1\nb\n", "a 1", "Copy it there, or take the line out"),
        ("a.jpg\n", "a.jpg", "The lists have names without suffix: write a"),
    ],
)
def test_a_listed_xml_is_missing(text, name, advice, tmp_path):
    write_voc(tmp_path, {"a": XML, "b": XML}, text)
    expected = (
        f"{tmp_path}/ImageSets/Main/train.txt: it names {name}, but "
        f"{tmp_path}/Annotations/{name}.xml is missing. {advice}"
    )
    assert error_of(load_voc, tmp_path, "train", CLASSES) == expected
    assert error_of(read_voc_objects, tmp_path, "train", CLASSES) == expected


# XML files

OBJECT = object_xml()
LEGAL = {
    "ISO-8859-1": b'<?xml version="1.0" encoding="ISO-8859-1"?>'
    + annotation_xml(OBJECT, file_name="Käfer.jpg").encode("latin-1"),
    "UTF-16": f'<?xml version="1.0" encoding="UTF-16"?>{XML}'.encode("utf-16"),
    "UTF-8 with a byte order mark": XML.encode("utf-8-sig"),
    "windows-1252": b'<?xml version="1.0" encoding="windows-1252"?>'
    + annotation_xml(OBJECT, file_name="5 €.jpg").encode("cp1252"),
    "spaces around texts": annotation_xml(object_xml(" cat\n", ["\n 1 ", " 2", "9 ", " 9 "])),
    "size with decimals": annotation_xml(OBJECT, size=("20.0", "10.0")),
    "parts of objects": XML.replace("</object>", f"<part>{OBJECT[8:-9]}</part></object>"),
    "boxes with decimals": annotation_xml(object_xml(box=("1.0", "2.00", "9.0", "9e0"))),
    "no comment is an object": XML.replace("<object>", "<!-- <object/> --><object>"),
}


@pytest.mark.parametrize("case", LEGAL)
def test_legal_xml(case, tmp_path):
    write_voc(tmp_path, {"a": XML})
    content = LEGAL[case]
    (tmp_path / "Annotations/a.xml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    annotation = {"category_id": 0, "bbox": [0.0, 1.0, 9.0, 9.0], "bbox_mode": BoxMode.XYXY_ABS}
    assert load_voc(str(tmp_path), "train", CLASSES) == [
        {
            "file_name": str(tmp_path / "JPEGImages/a.jpg"),
            "image_id": "a",
            "height": 10,
            "width": 20,
            "annotations": [annotation],
        }
    ]
    assert read_voc_objects(tmp_path, "train", CLASSES) == {"a": [("cat", False, list(BOX))]}


def test_boxes_keep_their_decimals_and_one_pixel(tmp_path):
    objects = object_xml(box=(1.5, 2.25, 8.75, 9.5)), object_xml(box=(20, 10, 20, 10))
    write_voc(tmp_path, {"a": annotation_xml(*objects)})
    (record,) = load_voc(tmp_path, "train", CLASSES)
    boxes = [annotation["bbox"] for annotation in record["annotations"]]
    assert boxes == [[0.5, 1.25, 8.75, 9.5], [19, 9, 20, 10]]


@pytest.mark.parametrize(
    "text, difficult",
    [("0", False), ("1", True), (" 1 ", True), ("Unspecified", False), ("", False)]
    + [("True", True), ("False", False), ("true", True), ("unspecified", False)],
)
def test_difficult(text, difficult, tmp_path):
    write_voc(tmp_path, {"a": annotation_xml(object_xml(difficult=text), object_xml("dog"))})
    objects = read_voc_objects(tmp_path, "train", CLASSES)["a"]
    assert [o.difficult for o in objects] == [difficult, False]
    (record,) = load_voc(tmp_path, "train", CLASSES, difficult=False)
    kept = [annotation["category_id"] for annotation in record["annotations"]]
    assert kept == ([1] if difficult else [0, 1])


def test_difficult_may_be_missing(tmp_path):
    write_voc(tmp_path, {"a": XML.replace("<difficult>0</difficult>", "")})
    assert not read_voc_objects(tmp_path, "train", CLASSES)["a"][0].difficult


def test_images_without_objects_stay(tmp_path):
    write_voc(tmp_path, {"a": annotation_xml(), "b": XML})
    records = load_voc(tmp_path, "train", CLASSES)
    assert [len(record["annotations"]) for record in records] == [0, 1]
    assert read_voc_objects(tmp_path, "train", CLASSES)["a"] == []


def corners(*texts):
    box = [f"{k} {v}" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), texts)]
    return f"an object of the class 'cat' has the corners {', '.join(box)}"


def with_box(*box):
    return annotation_xml(object_xml(), object_xml(box=box))


def with_difficult(text):
    return annotation_xml(object_xml(difficult=text))


CORRECT = "Correct them, or take the object out"
NOT_FINITE = f"which are not four finite numbers. {CORRECT}"
SWAPPED = f"whose corners are swapped. {CORRECT}"
UNKNOWN = (
    "an object is of the class {!r}, which is none of the data set's (cat, dog). Correct it, or "
    "add the class where the data set is registered"
)
UNREADABLE = "it cannot be read as XML ({}). Copy it again, or save it in UTF-8"
NO_ANNOTATION = (
    "it is no annotation of Pascal VOC, as it begins with <{}> instead of <annotation>. Move it "
    "elsewhere"
)
BNDBOX = (
    "an object of the class 'cat' has {} bndbox, expected one. Correct it, or take the object out"
)
DIFFICULT = "an object of the class 'cat' has {!r} as difficult, expected 0 or 1. Correct it"
NAMELESS = "an object has no name. Write the name of its class"
INSIDE = "it has objects inside of other elements. Put them directly into <annotation>"
DECLARED = '<?xml version="1.0" encoding="{}"?>' + XML
BAD_XML = {
    "unknown class": (annotation_xml(OBJECT, object_xml("dgo")), UNKNOWN.format("dgo")),
    "class in capitals": (annotation_xml(object_xml("Cat")), UNKNOWN.format("Cat")),
    "class with a line break": (annotation_xml(object_xml("a\ncat")), UNKNOWN.format("a\ncat")),
    "no name": (XML.replace("name>", "label>"), NAMELESS),
    "empty name": (annotation_xml(object_xml("")), NAMELESS),
    "blank name": (annotation_xml(object_xml(" ")), NAMELESS),
    "no box": (XML.replace("bndbox", "polygon"), BNDBOX.format("no")),
    "box of another format": (XML.replace("bndbox", "robndbox"), BNDBOX.format("no")),
    "two boxes": (XML.replace("<bndbox>", "<bndbox/><bndbox>"), BNDBOX.format(2)),
    "NaN": (with_box(1, 2, "nan", 9), f"{corners(1, 2, 'nan', 9)}, {NOT_FINITE}"),
    "infinity": (with_box("-inf", 2, 3, 9), f"{corners('-inf', 2, 3, 9)}, {NOT_FINITE}"),
    "a word": (with_box(1, "two", 3, 9), f"{corners(1, 'two', 3, 9)}, {NOT_FINITE}"),
    "comma": (with_box(1, "2,5", 3, 9), f"{corners(1, '2,5', 3, 9)}, {NOT_FINITE}"),
    "no xmin": (XML.replace("xmin>", "x>"), f"{corners('missing', 2, 9, 9)}, {NOT_FINITE}"),
    "empty ymax": (with_box(1, 2, 9, ""), f"{corners(1, 2, 9, 'missing')}, {NOT_FINITE}"),
    "negative width": (with_box(9, 2, 5, 9), f"{corners(9, 2, 5, 9)}, {SWAPPED}"),
    "negative height": (with_box(1, 9, 5, 8), f"{corners(1, 9, 5, 8)}, {SWAPPED}"),
    "both swapped": (with_box(9, 9, 1, 2), f"{corners(9, 9, 1, 2)}, {SWAPPED}"),
    "difficult 2": (with_difficult("2"), DIFFICULT.format("2")),
    "difficult yes": (with_difficult("yes"), DIFFICULT.format("yes")),
    "difficult -1": (with_difficult("-1"), DIFFICULT.format("-1")),
    "empty file": ("", UNREADABLE.format("no element found: line 1, column 0")),
    "cut off": (XML[:40], UNREADABLE.format("unclosed token: line 1, column 35")),
    "JSON": ("{}", UNREADABLE.format("not well-formed (invalid token): line 1, column 0")),
    "Latin-1 without saying so": (
        annotation_xml(OBJECT, file_name="Käfer").encode("latin-1"),
        UNREADABLE.format("not well-formed (invalid token): line 1, column 23"),
    ),
    "encoding of several bytes": (
        DECLARED.format("GBK"), UNREADABLE.format("multi-byte encodings are not supported")
    ),
    "encoding that does not exist": (
        DECLARED.format("latin-99"), UNREADABLE.format("unknown encoding: latin-99")
    ),
    "web page": ("<html><body/></html>", NO_ANNOTATION.format("html")),
    "several annotations": (f"<list>{XML}</list>", NO_ANNOTATION.format("list")),
    "list of objects": (annotation_xml(f"<objects>{OBJECT}</objects>"), INSIDE),
    "objects in an object": (XML.replace("</object>", f"{OBJECT}</object>"), INSIDE),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_XML)
def test_bad_xml(case, tmp_path):
    """The loader and the evaluator say the same."""
    content, line = BAD_XML[case]
    write_voc(tmp_path, {"a": XML, "b": XML})
    path = tmp_path / "Annotations/b.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    expected = f"{path}: {line}"
    assert "\n" not in expected
    assert error_of(load_voc, tmp_path, "train", CLASSES) == expected
    assert error_of(read_voc_objects, tmp_path, "train", CLASSES) == expected


# Pictures


def with_size(*size):
    return annotation_xml(OBJECT, size=size)


@pytest.mark.parametrize(
    "xml, found",
    [
        (with_size(0, 0), "0 x 0"),
        (with_size(20, 0), "20 x 0"),
        (with_size(10, 20), "10 x 20"),
        (with_size(21, 10), "21 x 10"),
        (with_size("wide", 10), "wide x 10"),
        (with_size("nan", 10), "nan x 10"),
        (with_size("", 10), "missing"),
        (XML.replace("size>", "sise>"), "missing"),
        (XML.replace("height>", "depth>"), "missing"),
    ],
)
def test_size_of_another_picture(xml, found, tmp_path):
    write_voc(tmp_path, {"a": xml})
    assert error_of(load_voc, tmp_path, "train", CLASSES) == (
        f"{tmp_path}/Annotations/a.xml: the width and height in <size> are {found}, but "
        f"{tmp_path}/JPEGImages/a.jpg has 20 x 10 pixels. Correct the size, or copy the right "
        "picture"
    )
    # The evaluation does not read it.
    assert len(read_voc_objects(tmp_path, "train", CLASSES)["a"]) == 1


def test_size_of_a_turned_picture(tmp_path):
    """The mapper turns it, and the XML has the size after that."""
    write_voc(tmp_path, {"a": annotation_xml(object_xml(), size=(10, 20))})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    (record,) = load_voc(tmp_path, "train", CLASSES)
    assert (record["width"], record["height"]) == (10, 20)
    (tmp_path / "Annotations/a.xml").write_text(XML)
    assert "are 20 x 10, but" in error_of(load_voc, tmp_path, "train", CLASSES)


def test_picture_is_missing(tmp_path):
    write_voc(tmp_path, {"a": XML, "my cat": XML})
    (tmp_path / "JPEGImages/my cat.jpg").unlink()
    assert error_of(load_voc, tmp_path, "train", CLASSES) == (
        f"{tmp_path}/Annotations/my cat.xml: its picture is missing, there is no my cat.jpg or "
        f"my cat.png in {tmp_path}/JPEGImages. Copy it there, or take the image out of "
        f"{tmp_path}/ImageSets/Main/train.txt"
    )
    assert error_of(load_voc, tmp_path, "", CLASSES).endswith(
        "take the image out of the annotations"
    )


def test_picture_is_broken(tmp_path):
    write_voc(tmp_path, {"a": XML})
    path = tmp_path / "JPEGImages/a.jpg"
    path.write_text("no picture")
    line = error_of(load_voc, tmp_path, "train", CLASSES)
    assert line.startswith(f"{path} is no image, or was cut off (") and "\n" not in line


def test_two_pictures(tmp_path):
    """The XML file says which one it describes."""
    write_voc(tmp_path, {"a": XML})
    write_picture(tmp_path / "JPEGImages/a.png")
    assert error_of(load_voc, tmp_path, "train", CLASSES) == (
        f"{tmp_path}/Annotations/a.xml: its picture could be a.jpg or a.png in "
        f"{tmp_path}/JPEGImages. Keep one, or name it in <filename>"
    )
    for name in ("a.jpg", "a.png"):
        (tmp_path / "Annotations/a.xml").write_text(annotation_xml(OBJECT, file_name=name))
        (record,) = load_voc(tmp_path, "train", CLASSES)
        assert record["file_name"] == str(tmp_path / "JPEGImages" / name)


@pytest.mark.parametrize("box", [(21, 2, 30, 9), (1, 11, 9, 12), (-5, 2, 0, 9), (1, -3, 9, 0)])
def test_box_outside_of_the_picture(box, tmp_path):
    write_voc(tmp_path, {"a": with_box(*box)})
    assert error_of(load_voc, tmp_path, "train", CLASSES) == (
        f"{tmp_path}/Annotations/a.xml: an object of the class 'cat' has the box "
        f"({', '.join(map(str, box))}), which is outside of the picture of 20 x 10 pixels. Correct "
        "it, or take the object out"
    )


@pytest.mark.parametrize("box", [(0, 0, 9, 9), (1, 2, 21, 9), (-3, 2, 5, 30)])
def test_boxes_that_reach_out_are_counted_once(box, tmp_path, caplog):
    """As those of data sets that count pixels from 0."""
    write_voc(tmp_path, {"a": XML, "b": with_box(*box), "c": with_box(*box)})
    with caplog.at_level(logging.WARNING):
        records = load_voc(tmp_path, "train", CLASSES)
        assert records == load_voc(tmp_path, "train", CLASSES)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/Annotations/b.xml: a box reaches out of its picture, in which Pascal VOC "
        f"counts the pixels from 1. Boxes of {tmp_path} that do so: 2"
    ]
    expected = [box[0] - 1, box[1] - 1, *box[2:]]
    assert records[1]["annotations"][1]["bbox"] == expected


# Folders

LAYOUTS = [
    dict(),
    dict(suffix=".png"),
    dict(suffix=".JPG"),
    dict(annotations="annotations", pictures="images", suffix=".png", list_file=""),
    dict(annotations="Annotations", pictures="images", suffix=".jpeg", list_file="train.txt"),
    dict(annotations="annotations", pictures="JPEGImages", list_file=""),
    dict(annotations="annotations", pictures="", suffix=".png", list_file=""),
    dict(annotations="", pictures="images", suffix=".bmp", list_file="train.txt"),
    dict(annotations="", pictures="", list_file=""),
    dict(annotations="", pictures="", suffix=".png", list_file="train.txt"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts(layout, tmp_path, names, caplog):
    write_voc(tmp_path, {"my cat": XML, "b.1": XML}, **layout)
    split = None if layout.get("list_file") == "" else "train"
    names.append("mine")
    register_pascal_voc("mine", ["cat", "dog"], tmp_path, split, 2007)
    check_datasets(["mine"])
    records = load_checked("mine")
    folder, suffix = layout.get("pictures", "JPEGImages"), layout.get("suffix", ".jpg")
    ids = ["my cat", "b.1"] if split else ["b.1", "my cat"]
    assert [r["image_id"] for r in records] == ids
    assert [r["file_name"] for r in records] == [
        str(tmp_path / folder / f"{i}{suffix}") for i in ids
    ]
    assert list(read_voc_objects(str(tmp_path), split or "", CLASSES)) == ids
    meta = MetadataCatalog.get("mine")
    assert (meta.year, meta.thing_classes, meta.evaluator_type) == (
        2007,
        ["cat", "dog"],
        "pascal_voc",
    )
    assert not caplog.records


def test_pictures_without_annotations_are_named(tmp_path, caplog):
    write_voc(tmp_path, {"a": XML}, annotations="annotations", pictures="images", list_file="")
    for name in ("b.png", "c.png", ".hidden.png"):
        write_picture(tmp_path / "images" / name)
    (tmp_path / "annotations/._a.xml").write_bytes(b"\0\5\26\7")  # of another operating system
    with caplog.at_level(logging.WARNING):
        assert [r["image_id"] for r in load_voc(tmp_path, "", CLASSES)] == ["a"]
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/images: pictures without an XML file are not used, such as b. There are 2"
    ]


@pytest.mark.parametrize(
    "made, split, missing",
    [
        ([], "train", "ImageSets/Main/train.txt"),
        ([], None, "Annotations"),
        (["images/a.png", "annotations/a.xml"], "train", "ImageSets/Main/train.txt"),
        (["ImageSets/Main/train.txt", "images/a.png"], "train", "Annotations"),
        (["a.png"], None, "Annotations"),
        (["a.xml"], None, "JPEGImages"),
        (["train.txt", "annotations/a.xml"], "train", "JPEGImages"),
    ],
)
def test_missing_folders(made, split, missing, tmp_path, names):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names.append("mine")
    register_pascal_voc("mine", ["cat", "dog"], tmp_path, split)
    assert error_of(check_datasets, ["mine"]) == (
        f"data set mine: {tmp_path}/{missing} is missing; correct the path with which it is "
        "registered"
    )


def test_a_folder_without_annotations(tmp_path, names):
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    names.append("mine")
    register_pascal_voc("mine", ["cat"], tmp_path)
    check_datasets(["mine"])
    line = f"{tmp_path}/annotations: it has no .xml file. Copy the files there"
    assert error_of(load_checked, "mine") == line


@pytest.mark.parametrize("classes", ["cat", "datasets/mine", [], ["cat", "dog", "cat"], [0, 1]])
def test_class_names_that_cannot_be(classes, tmp_path):
    with pytest.raises(ValueError) as e:
        register_pascal_voc("mine", classes, tmp_path, "train")
    assert str(e.value) == (
        f"register_pascal_voc: the class names of mine are {classes!r}, expected a list of "
        "different names as the second argument"
    )
    assert "mine" not in DatasetCatalog


@pytest.mark.parametrize("year", [2010, "2007", None])
def test_years_that_have_no_metric(year, tmp_path, names):
    with pytest.raises(ValueError) as e:
        register_pascal_voc("mine", ["cat"], tmp_path, "train", year)
    assert str(e.value) == (
        f"register_pascal_voc: the year of mine is {year!r}, expected 2007 or 2012"
    )
    assert "mine" not in DatasetCatalog


# Data sets that others registered


@pytest.fixture
def theirs(names):
    def register(folder, split="train", classes=CLASSES):
        names.append(f"theirs_{len(names)}")
        register_with_detectron2(names[-1], str(folder), split, 2012, classes)
        return names[-1]

    return register


def test_what_detectron2_loads_is_accepted(tmp_path, theirs):
    objects = object_xml(), object_xml("dog", (1.5, 2, 20, 10), "1")
    write_voc(tmp_path, {"a": annotation_xml(*objects), "b": annotation_xml()})
    name = theirs(tmp_path)
    assert load_checked(name) == load_voc(str(tmp_path), "train", CLASSES)


UNDERSTOOD = {
    "a list of one image": dict(images=["a"]),
    "names with spaces": dict(images=["my cat", "my dog"]),
    "columns": dict(images=["a", "b"], image_list="a 1\nb -1\n"),
    "a byte order mark": dict(images=["a", "b"], image_list="\ufeffa\nb\n"),
    "a hash": dict(images=["a", "a#b"]),
    "PNG": dict(images=["a", "b"], suffix=".png"),
    "folders of other names": dict(images=["a", "b"], annotations="annotations", pictures="images"),
    "an encoding": dict(images=["a", "b"], xml=f'<?xml version="1.0" encoding="UTF-16"?>{XML}'),
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_what_detectron2_does_not_understand(case, tmp_path, theirs):
    options = dict(UNDERSTOOD[case])
    images, xml = options.pop("images"), options.pop("xml", None)
    write_voc(tmp_path, dict.fromkeys(images, XML), **options)
    if xml:
        (tmp_path / "Annotations/b.xml").write_bytes(xml.encode("utf-16"))
    name = theirs(tmp_path)
    assert error_of(load_checked, name) == (
        f"data set {name}: it is registered with detectron2's register_pascal_voc, which does not "
        "understand its lists or files. Register it with dcn_projects.data.register_pascal_voc, "
        "which does"
    )
    assert [r["image_id"] for r in load_voc(tmp_path, "train", CLASSES)] == images


@pytest.mark.parametrize("case", ["unknown class", "NaN", "no box", "negative width", "cut off"])
def test_mistakes_in_data_that_detectron2_loads(case, tmp_path, theirs):
    content, line = BAD_XML[case]
    write_voc(tmp_path, {"a": XML, "b": content})
    name = theirs(tmp_path)
    assert error_of(load_checked, name) == f"{tmp_path}/Annotations/b.xml: {line}"


def test_data_sets_of_an_own_loader(tmp_path, names):
    """Only what the evaluator reads is checked."""
    write_voc(tmp_path, {"a": XML})
    names.append("own")
    DatasetCatalog.register("own", list)
    metadata = MetadataCatalog.get("own")
    check_voc("own")
    metadata.set(dirname=str(tmp_path), split="train", thing_classes=["dog"], year=2012)
    check_voc("own")
    metadata.evaluator_type = "pascal_voc"
    line = f"{tmp_path}/Annotations/a.xml: an object is of the class 'cat', which is none of the "
    assert error_of(check_voc, "own").startswith(f"{line}data set's (dog)")


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("dirname", None, "its Metadata has no dirname for its evaluator"),
        ("split", None, "its Metadata has no split for its evaluator"),
        ("year", None, "its Metadata has no year for its evaluator"),
        ("year", 2010, "its year is 2010, expected 2007 or 2012"),
    ],
)
def test_metadata_of_an_own_loader(key, value, line, tmp_path, names):
    write_voc(tmp_path, {"a": XML})
    names.append("own")
    DatasetCatalog.register("own", list)
    values = dict(dirname=str(tmp_path), split="train", thing_classes=["cat"], year=2012)
    values |= {"evaluator_type": "pascal_voc", key: value}
    MetadataCatalog.get("own").set(**{k: v for k, v in values.items() if v is not None})
    with pytest.raises(ValueError) as e:
        check_voc("own")
    assert str(e.value) == f"data set own: {line}"


def test_records_are_those_of_detectron2(tmp_path):
    write_voc(tmp_path, {"b": with_box(2, 3, 7, 8), "a": XML})
    arguments = (str(tmp_path), "train", CLASSES)
    assert load_voc(*arguments) == load_voc_instances(*arguments)
