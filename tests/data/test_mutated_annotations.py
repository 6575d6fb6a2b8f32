"""Annotations of every odd kind: what is not refused in one line can be learnt and evaluated."""

import copy
import json
import logging
import random
import re

import pycocotools.mask
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.data import (
    CheckedDatasetMapper,
    check_objects,
    check_pictures,
    load_checked,
    loading,
    read_voc_objects,
    register_pascal_voc,
)
from dcn_projects.data.datasets.voc_seg import load_voc_sem_seg
from dcn_projects.evaluation import COCOThresholdEvaluator
from tests.voc_data import annotation_xml, object_xml, write_voc

SIZES = {"a.png": (20, 10), "b.png": (10, 20)}  # width and height
MASK = {"size": [10, 20], "counts": [0, 5, 195]}
PACKED = pycocotools.mask.frPyObjects(MASK, *MASK["size"])["counts"].decode()
COCO = {
    "images": [
        {"id": 3, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 5, "file_name": "b.png", "width": 10, "height": 20},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 3,
            "category_id": 2,
            "bbox": [1, 2, 5.5, 5],
            "area": 9,
            "iscrowd": 0,
            "segmentation": [[0, 0, 5, 0, 5, 5]],
            "keypoints": [1, 2, 2],
            "num_keypoints": 1,
        },
        {
            "id": 2,
            "image_id": 3,
            "category_id": 4,
            "bbox": [0, 0, 1, 5],
            "area": 5,
            "iscrowd": 1,
            "segmentation": MASK,
        },
    ],
    "categories": [{"id": 2, "name": "cat"}, {"id": 4, "name": "dog"}],
}
RECORDS = [
    {
        "file_name": "a.png",
        "image_id": 3,
        "width": 20,
        "height": 10,
        "annotations": [
            {
                "bbox": [1, 2, 9.5, 9],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "iscrowd": 0,
                "segmentation": [[0, 0, 5, 0, 5, 5]],
                "keypoints": [1, 2, 2],
            },
            {
                "bbox": [0, 0, 1, 5],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "iscrowd": 1,
                "segmentation": MASK | {"counts": PACKED},
            },
        ],
    },
    {"file_name": "b.png", "image_id": 5, "width": 10, "height": 20, "annotations": []},
]
ODD = [None, "text", "\0", True, [], {}, [1], [[1]], {"a": 1}, float("nan"), float("inf"), -1, 0]
ODD += [3.5, 1e308, 10**12, 10**400, -(10**400), MASK | {"counts": [10**12]}, [[1] * 6]]
DELETED = object()
logger = logging.getLogger(__name__)


def places(value, place=()):
    """Where there is something in a JSON-like value, as tuples of keys and indices."""
    yield place
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from places(part, (*place, key))


def replaced(value, place, by):
    if not place:
        return by
    value = copy.deepcopy(value)
    target = value
    for key in place[:-1]:
        target = target[key]
    if by is DELETED:
        del target[place[-1]]
    else:
        target[place[-1]] = by
    return value


@pytest.fixture
def use(tmp_path, monkeypatch, capsys):
    """
    use(register) registers a data set with the name that it gives to `register`, and learns and
    evaluates. It returns whether the data can be used. All errors but those of the checks, in one
    line, are raised.
    """
    monkeypatch.chdir(tmp_path)
    for name, size in SIZES.items():
        Image.new("RGB", size).save(name)
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (10,)
    mapper = CheckedDatasetMapper(cfg, is_train=True)

    def checked(evaluated):
        try:
            records = load_checked("mutated", evaluated)
            with loading(["mutated"]):
                masks = "any" if evaluated else "bitmask"
                check_objects("mutated", records, 2, masks, None, evaluated)
                check_pictures(records)
            return records
        except OSError as e:
            assert "\n" not in str(e)
            assert len(str(e)) < 600 or "File name too long" in str(e)
            return None

    def use(register):
        register("mutated")
        try:
            to_learn, to_evaluate = checked(False), checked(True)
            for record in to_learn or ():
                mapper(record)
            if to_evaluate is not None:
                evaluate("mutated", to_evaluate)
            capsys.readouterr()
            return to_evaluate is not None
        finally:
            DatasetCatalog.remove("mutated")
            MetadataCatalog.remove("mutated")

    return use


def evaluate(name, records):
    """With one detection in each image."""
    evaluator = COCOThresholdEvaluator(name, ("bbox", "segm"), False, output_dir="evaluated")
    evaluator.reset()
    for record in records:
        size = int(record["height"]), int(record["width"])
        found = Instances(size, pred_boxes=Boxes(torch.tensor([[0.0, 0, 5, 5]])))
        found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
        found.pred_masks = BitMasks(torch.ones(1, *size)).tensor
        evaluator.process([record], [{"instances": found}])
    evaluator.evaluate()


def of_file(content):
    def register(name):
        with open("mutated.json", "w" if isinstance(content, str) else "wb") as file:
            file.write(content)
        register_coco_instances(name, {}, "mutated.json", ".")

    return register


def of_records(records):
    def register(name):
        DatasetCatalog.register(name, lambda: copy.deepcopy(records))
        MetadataCatalog.get(name).set(thing_classes=["cat", "dog"], evaluator_type="coco")

    return register


def test_a_file_with_odd_values(use):
    """Each value in a file in the COCO format is replaced by values of all other kinds."""
    assert use(of_file(json.dumps(COCO)))
    usable = [
        use(of_file(json.dumps(replaced(COCO, place, odd))))
        for place in places(COCO)
        for odd in (*ODD, DELETED)
        if place or odd is not DELETED
    ]
    assert 100 < sum(usable) < len(usable) / 2


def test_records_with_odd_values(use):
    """The same of the records of a data set that is in no file."""
    assert use(of_records(RECORDS))
    usable = [
        use(of_records(replaced(RECORDS, place, odd)))
        for place in places(RECORDS)
        for odd in (*ODD, torch.ones(2), DELETED)
        if place or odd is not DELETED
    ]
    assert 50 < sum(usable) < len(usable) / 2


PIECES = [b"9" * 400, b"9" * 5000, b"[" * 10**5, b'{"a":' * 10**5, b"[", b"{", b'"', b"\0", b"\xff"]
PIECES += [b"e999", b"-", b"null", b"NaN"]


def mutated(content, pieces, rng):
    """Cut off, with a piece of something else in it, without a piece, or with other bytes."""
    kind, start = rng.randrange(4), rng.randrange(len(content))
    if kind == 0:
        return content[:start]
    if kind == 1:
        return content[:start] + rng.choice(pieces) + content[start:]
    if kind == 2:
        return content[:start] + content[start + rng.choice([1, 5, 20]) :]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def test_a_damaged_file(use):
    content, rng = json.dumps(COCO).encode(), random.Random(0)
    usable = [use(of_file(mutated(content, PIECES, rng))) for _ in range(300)]
    assert 0 < sum(usable) < 100


XML = annotation_xml(object_xml(), object_xml("dog"), file_name="a.jpg")
TAGS = [piece.encode() for piece in re.findall("<[^>]*>", XML)]
TAGS += [
    b"<!--",
    b"]]>",
    b"<![CDATA[",
    b"&#0;",
    b"&none;",
    b"\0",
    b"\xff",
    b"nan",
    b"1e400",
    b"9" * 5000,
]


def with_entities(definitions, reference):
    """A file whose first class is `reference`, which stands for very much."""
    return f"<!DOCTYPE annotation [{definitions}]>{XML.replace('cat', reference)}".encode()


LAUGHS = "".join(f'<!ENTITY x{i + 1} "{f"&x{i};" * 10}">' for i in range(12))
BOMBS = [
    with_entities(f'<!ENTITY x0 "lol">{LAUGHS}', "&x12;"),
    with_entities(f'<!ENTITY x "{"A" * 10**5}">', "&x;" * 60),
    with_entities('<!ENTITY x SYSTEM "file:///etc/hostname">', "&x;"),
    b"<annotation>" + b"<a>" * 10**5 + b"</a>" * 10**5 + b"</annotation>",
    b"<annotation>" + b"<object>" * 10**5,
    *(
        f'<?xml version="1.0" encoding="{encoding}"?>{XML}'.encode()
        for encoding in ("none", "rot13", "UTF-7", "undefined", "idna", "x" * 3000)
    ),
]
LISTS = [b"a\0b\n", b"\0", b"../a\n", b"/a\n", b"x" * 5000, b"a\x1cb", b"\xff\xfea", b"a\n" * 10**4]


def lines_of_voc(folder):
    """The lines with which readers of VOC data refuse what is in a folder."""
    lines = []
    for read in (
        lambda: load_checked("mutated_voc", True),
        lambda: read_voc_objects(folder, "train", ("cat", "dog")),
        lambda: load_voc_sem_seg(str(folder), "ImageSets/Main/train.txt", "labels"),
    ):
        try:
            read()
        except OSError as e:
            lines.append(str(e))
            assert "\n" not in lines[-1] and str(folder) in lines[-1]
    return lines


@pytest.mark.parametrize("path", ["Annotations/a.xml", "ImageSets/Main/train.txt"])
def test_damaged_files_of_voc(path, tmp_path, request):
    write_voc(tmp_path, {"a": XML, "b": XML})
    register_pascal_voc("mutated_voc", ("cat", "dog"), tmp_path, "train")
    request.addfinalizer(lambda: DatasetCatalog.remove("mutated_voc"))
    request.addfinalizer(lambda: MetadataCatalog.remove("mutated_voc"))
    assert not lines_of_voc(tmp_path)
    content, rng = (tmp_path / path).read_bytes(), random.Random(0)
    files = [mutated(content, TAGS, rng) for _ in range(600)]
    refused = 0
    for file in files + (BOMBS if path.endswith("xml") else LISTS):
        (tmp_path / path).write_bytes(file)
        lines = lines_of_voc(tmp_path)
        assert all(len(line) < 600 for line in lines) or file in LISTS
        refused += bool(lines)
    assert 300 < refused < 600 + len(BOMBS)
