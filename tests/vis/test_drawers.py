import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances

from dcn_projects.vis import InstanceDrawer, PixelClassDrawer, class_metadata

IMAGE = np.full((40, 60, 3), 100, np.uint8)


NAMED = Metadata(
    thing_classes=["zero", "one"],
    stuff_classes=["zero", "one"],
    stuff_colors=[(255, 0, 0), (0, 0, 255)],
)


class Predictor:
    """Finds the same in every image."""

    def __init__(self, output, metadata):
        self.output, self.metadata = output, metadata

    def __call__(self, image):
        assert image is IMAGE
        return self.output


def objects():
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 10, 12], [20, 10, 50, 30], [0, 0, 5, 5]]))
    found.scores = torch.tensor([0.5, 0.9, 0.2])
    found.pred_classes = torch.tensor([0, 1, 1])
    return {"instances": found}


@pytest.mark.parametrize("with_names", [True, False])
def test_objects(with_names):
    drawer = InstanceDrawer(
        Predictor(objects(), NAMED if with_names else Metadata()), confidence=0.5
    )
    found = drawer.predict(IMAGE)
    assert drawer.count(found) == "2 detections"
    names = ["one", "zero"] if with_names else ["1", "0"]
    assert drawer.lines(found) == [  # the surest first
        f"{names[0]} 0.900 20.0 10.0 50.0 30.0",
        f"{names[1]} 0.500 1.0 2.0 10.0 12.0",
    ]
    drawn = drawer.draw(IMAGE, found, scale=2)
    assert drawn.shape == (80, 120, 3) and (drawn[18:62, 38:102] != 100).any()


def pixels(num_classes=2):
    """The left quarter is of class 1, the rest of class 0."""
    scores = torch.zeros(num_classes, 40, 60)
    scores[1, :, :15] = 1
    scores[0, :, 15:] = 1
    return {"sem_seg": scores}


def test_pixel_classes():
    """The blue of class 1 is laid over it, in BGR."""
    drawer = PixelClassDrawer(Predictor(pixels(), NAMED), num_classes=2)
    found = drawer.predict(IMAGE)
    assert found.shape == (40, 60) and drawer.count(found) == "2 classes"
    assert drawer.lines(found) == ["zero 75.0 %", "one 25.0 %"]
    drawn = drawer.draw(IMAGE, found)
    np.testing.assert_allclose(drawn[35, 5], (0.6 * 255 + 0.4 * 100, 40, 40), atol=2)
    np.testing.assert_allclose(drawn[35, 50], (40, 40, 0.6 * 255 + 0.4 * 100), atol=2)
    drawer.start_video()
    assert drawer.draw_frame(IMAGE, found).shape == IMAGE.shape


OTHERS = {
    "no names": Metadata(),
    "things only": Metadata(thing_classes=["zero", "one", "two"]),
    "fewer names": Metadata(stuff_classes=["one"], stuff_colors=[(1, 2, 3)]),
    "more names": Metadata(stuff_classes=list("abcd"), stuff_colors=[(1, 2, 3)] * 4),
    "empty": Metadata(stuff_classes=[], stuff_colors=[]),
}


@pytest.mark.parametrize("name", [*OTHERS, "no colours", "fewer colours"])
def test_pixel_classes_of_other_data(name):
    """
    Without names for all classes and no others the indices are written. A class has the same colour
    in every picture and frame, and another one than the other classes.
    """
    names = ["0", "1"]
    metadata = OTHERS.get(name)
    if metadata is None:
        names = ["no", "yes"]
        metadata = Metadata(stuff_classes=["no", "yes", "maybe"])
        if name == "fewer colours":
            metadata.stuff_colors = [(255, 0, 0)]
    drawer = PixelClassDrawer(Predictor(pixels(3), metadata), num_classes=3)
    found = drawer.predict(IMAGE)
    assert drawer.lines(found) == [f"{names[0]} 75.0 %", f"{names[1]} 25.0 %"]
    drawn = drawer.draw(IMAGE, found)
    np.testing.assert_array_equal(drawer.draw(IMAGE, found), drawn)
    left, right = drawn[35, 5].astype(int), drawn[35, 50].astype(int)
    for pixel in (left, right):
        assert np.abs(pixel - 100).max() > 20
    assert np.abs(left - right).max() > 20
    drawer.start_video()
    frames = [drawer.draw_frame(IMAGE, found) for _ in range(2)]
    np.testing.assert_array_equal(*frames)
    assert np.abs(frames[0][35, 5].astype(int) - frames[0][35, 50]).max() > 20


@pytest.fixture
def data():
    """`first` has two classes of objects, `second` two others, and three of pixels."""
    MetadataCatalog.get("first").thing_classes = ["a", "b"]
    MetadataCatalog.get("second").set(thing_classes=["c", "d"], stuff_classes=["e", "f", "g"])
    yield
    for name in ("first", "second", "not_registered"):
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "train, test, key, number, expected",
    [
        (("first",), ("second",), "thing_classes", 2, ["a", "b"]),
        (("second",), ("first",), "thing_classes", 2, ["c", "d"]),
        (("not_registered",), ("second",), "thing_classes", 2, ["c", "d"]),
        ((), ("second",), "thing_classes", 2, ["c", "d"]),
        (("first",), ("second",), "stuff_classes", 3, ["e", "f", "g"]),
        (("first",), ("second",), "stuff_classes", 2, None),
        (("first",), ("second",), "thing_classes", 80, None),
        (("not_registered",), ("not_registered",), "thing_classes", 2, None),
        ((), (), "thing_classes", 2, None),
        (("first",), (), "thing_classes", None, ["a", "b"]),
    ],
)
def test_whose_names(train, test, key, number, expected, data):
    """Those of the training, else of the evaluation, if there are as many as the model has."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    assert class_metadata(cfg, key, number).get(key) == expected
