from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from dcn_projects import vis
from dcn_projects.layers import DeformConv
from dcn_projects.vis import ImageOffsets, OffsetPictures


def make_offsets(**kwargs):
    empty = dict(size=(8, 8), scale=(1, 1), convs={}, strides={}, poolings=[], instances=None)
    return ImageOffsets(**{**empty, **kwargs})


def test_stack_ends_where_the_maps_change():
    def entry(stride=1):
        return SimpleNamespace(layer=DeformConv(1, 1, 3, stride=stride, padding=1))

    convs = {"a": entry(), "b": entry(2), "c": entry(), "d": entry()}
    seen = make_offsets(convs=convs, strides={"a": 8, "b": 16, "c": 16, "d": 16})
    assert seen.stack(1) == ["d"]
    assert seen.stack(2) == ["c", "d"]
    assert seen.stack(9) == ["b", "c", "d"]  # b reads another map than it writes
    seen.strides["a"] = 16
    convs["b"] = entry()
    assert seen.stack(9) == ["a", "b", "c", "d"]
    seen.strides["b"] = 8  # a plain convolution of stride 2 lies between
    assert seen.stack(9) == ["c", "d"]


def test_locations_under_a_point():
    """Two layers at stride 16, of which the first reads stride 8; the image was halved."""
    convs = {
        name: SimpleNamespace(
            layer=DeformConv(1, 1, 1, stride=stride), offset=np.zeros((1, 2, 3, 3), np.float32)
        )
        for name, stride in (("a", 2), ("b", 1))
    }
    convs["b"].offset[:] = 0.4  # rounded away by the layer before
    convs["a"].offset[0, :, 1, 2] = 0.25, -3
    seen = make_offsets(size=(50, 48), scale=(0.5, 0.5), convs=convs, strides={"a": 16, "b": 16})
    points, cell, stride = seen.locations((70, 63))  # pixel (35, 31.5), cell (1, 2)
    np.testing.assert_allclose(points, [[2.25, 1]])
    assert cell == (2.5, 4.5) and stride == 8
    assert seen.locations((95.9, 99.9))[1] == (4.5, 4.5)  # the map ends at pixel 48
    for point in ((96, 5), (5, 100), (-1, 5), (5, -0.1)):
        with pytest.raises(ValueError, match="outside of the image, which is 96 x 100 pixels"):
            seen.locations(point)
    with pytest.raises(ValueError, match="group 1: b has 1 deformable groups"):
        seen.locations((5, 5), group=1)


def test_roi_of_a_detection():
    rois = np.array([[0, 0, 0, 10, 10], [0, 20, 20, 40, 40]], dtype=np.float32)
    of_classes = SimpleNamespace(offset=np.zeros((2, 22, 3, 3)), rois=rois)
    shared = SimpleNamespace(offset=np.zeros((2, 2, 3, 3)), rois=rois)
    none = SimpleNamespace(offset=np.zeros((0, 22, 3, 3)), rois=np.zeros((0, 5)))
    seen = make_offsets(poolings=[none, of_classes, shared])
    entry, index = seen.roi_of(np.array([19.0, 19, 38, 41]))
    assert entry is of_classes and index == 1
    # Levels of a pyramid, with RoIs of their own
    levels = [SimpleNamespace(offset=np.zeros((1, 2, 3, 3)), rois=rois[i : i + 1]) for i in (0, 1)]
    entry, index = make_offsets(poolings=levels).roi_of(np.array([19.0, 19, 38, 41]))
    assert entry is levels[1] and index == 0
    assert make_offsets().roi_of(np.array([0.0, 0, 1, 1])) is None


def test_model_without_deformable_layers(tiny_model):
    from dcn_projects.engine import build_predictor

    config, weights, opts = tiny_model(deformable=False)
    with pytest.raises(ValueError, match="no deformable layer"):
        vis.record_image(
            build_predictor(config, weights, opts), np.zeros((64, 80, 3), dtype=np.uint8)
        )


def test_surest_detections():
    found = Instances((50, 48), scores=torch.tensor([0.3, 0.9, 0.6]))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 2, 2], [10, 20, 20, 40], [0, 0, 4, 4]]))
    offsets = make_offsets(instances=found, scale=(0.5, 0.25))
    assert offsets.surest().scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert offsets.surest(2, 0.7).scores.tolist() == pytest.approx([0.9])
    assert offsets.middle_of(offsets.surest(1).pred_boxes.tensor.numpy()[0]) == (30, 120)
    assert make_offsets().surest() is None


def test_pictures_of_a_model_without_deformable_pooling():
    conv = SimpleNamespace(layer=DeformConv(1, 1, 1), offset=np.full((1, 2, 2, 3), 1.0, np.float32))
    offsets = make_offsets(size=(32, 48), convs={"a": conv}, strides={"a": 16})
    pictures = OffsetPictures(np.full((32, 48, 3), 100, np.uint8), offsets, zoom=2)
    assert pictures.plain.shape == (64, 96, 3)
    # Cell (0, 1) reads cell (1, 2), whose middle is (40, 24) in pixels of the input.
    drawn = pictures.sampling_locations((20, 5))
    assert drawn[48, 80].tolist() == [0, 0, 255] and drawn[16, 48].tolist() == [0, 255, 0]
    assert pictures.deformed_bins(np.array([0.0, 0, 8, 8]), 0) is None
    heat = pictures.offset_magnitude("a")
    assert heat.shape == (64 + 24, 96, 3)
    assert (heat[24:] == heat[-1, -1]).all()  # it is the same everywhere
    assert (pictures.plain == 100).all()  # not drawn upon


def test_names_of_version_0_1():
    assert vis.Look is ImageOffsets and vis.look is vis.record_image
