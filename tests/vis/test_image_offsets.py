from types import SimpleNamespace

import numpy as np
import pytest

from dcn_projects.layers import DeformConv
from dcn_projects.vis import ImageOffsets


def make_look(**kwargs):
    empty = dict(size=(8, 8), scale=(1, 1), convs={}, strides={}, poolings=[], instances=None)
    return ImageOffsets(**{**empty, **kwargs})


def test_stack_ends_where_the_maps_change():
    def entry(stride=1):
        return SimpleNamespace(layer=DeformConv(1, 1, 3, stride=stride, padding=1))

    convs = {"a": entry(), "b": entry(2), "c": entry(), "d": entry()}
    seen = make_look(convs=convs, strides={"a": 8, "b": 16, "c": 16, "d": 16})
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
    seen = make_look(size=(50, 48), scale=(0.5, 0.5), convs=convs, strides={"a": 16, "b": 16})
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
    seen = make_look(poolings=[none, of_classes, shared])
    entry, index = seen.roi_of(np.array([19.0, 19, 38, 41]))
    assert entry is of_classes and index == 1
    # Levels of a pyramid, with RoIs of their own
    levels = [SimpleNamespace(offset=np.zeros((1, 2, 3, 3)), rois=rois[i : i + 1]) for i in (0, 1)]
    entry, index = make_look(poolings=levels).roi_of(np.array([19.0, 19, 38, 41]))
    assert entry is levels[1] and index == 0
    assert make_look().roi_of(np.array([0.0, 0, 1, 1])) is None


def test_model_without_deformable_layers(tiny_model):
    from dcn_projects.engine import build_predictor
    from dcn_projects.vis import look

    config, weights, opts = tiny_model(deformable=False)
    with pytest.raises(ValueError, match="no deformable layer"):
        look(build_predictor(config, weights, opts), np.zeros((64, 80, 3), dtype=np.uint8))
