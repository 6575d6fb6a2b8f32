import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from dcn_projects.vis import InstanceDrawer, PixelClassDrawer

IMAGE = np.full((40, 60, 3), 100, np.uint8)


class Predictor:
    """Finds the same in every image; its data set has the names "zero" and "one"."""

    def __init__(self, output, names=True):
        self.output, self.cfg = output, get_cfg()
        self.cfg.DATASETS.TEST = ("drawers_test",) if names else ()
        self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2

    def __call__(self, image):
        assert image is IMAGE
        return self.output


@pytest.fixture(autouse=True)
def names():
    MetadataCatalog.get("drawers_test").set(
        thing_classes=["zero", "one"],
        stuff_classes=["zero", "one"],
        stuff_colors=[(255, 0, 0), (0, 0, 255)],
    )
    yield
    MetadataCatalog.remove("drawers_test")


def objects():
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 10, 12], [20, 10, 50, 30], [0, 0, 5, 5]]))
    found.scores = torch.tensor([0.5, 0.9, 0.2])
    found.pred_classes = torch.tensor([0, 1, 1])
    return {"instances": found}


@pytest.mark.parametrize("with_names", [True, False])
def test_objects(with_names):
    drawer = InstanceDrawer(Predictor(objects(), with_names), confidence=0.5)
    found = drawer.predict(IMAGE)
    assert drawer.count(found) == "2 detections"
    names = ["one", "zero"] if with_names else ["1", "0"]
    assert drawer.lines(found) == [  # the surest first
        f"{names[0]} 0.900 20.0 10.0 50.0 30.0",
        f"{names[1]} 0.500 1.0 2.0 10.0 12.0",
    ]
    drawn = drawer.draw(IMAGE, found, scale=2)
    assert drawn.shape == (80, 120, 3) and (drawn[18:62, 38:102] != 100).any()


@pytest.mark.parametrize("with_names", [True, False])
def test_pixel_classes(with_names):
    """The left quarter is of class 1. With a data set its blue is laid over it, in BGR."""
    scores = torch.zeros(2, 40, 60)
    scores[1, :, :15] = 1
    scores[0, :, 15:] = 1
    drawer = PixelClassDrawer(Predictor({"sem_seg": scores}, with_names), num_classes=2)
    found = drawer.predict(IMAGE)
    assert found.shape == (40, 60) and drawer.count(found) == "2 classes"
    names = ["zero", "one"] if with_names else ["0", "1"]
    assert drawer.lines(found) == [f"{names[0]} 75.0 %", f"{names[1]} 25.0 %"]
    drawn = drawer.draw(IMAGE, found)
    if with_names:
        np.testing.assert_allclose(drawn[35, 5], (0.6 * 255 + 0.4 * 100, 40, 40), atol=2)
        np.testing.assert_allclose(drawn[35, 50], (40, 40, 0.6 * 255 + 0.4 * 100), atol=2)
    drawer.start_video()
    assert drawer.draw_frame(IMAGE, found).shape == IMAGE.shape
