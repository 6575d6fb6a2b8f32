"""Configs that fit neither their weights nor their data."""

import logging

import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads

from dcn_projects import add_dcn_config
from dcn_projects.config import reads
from dcn_projects.engine import check_classes, check_keys, check_preprocessing
from dcn_projects.engine.check_config import check_evaluators, check_keypoints
from dcn_projects.modeling import OHEMROIHeads

MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@pytest.mark.parametrize(
    "weights,options,named",
    [
        (MSRA, [], []),
        (MSRA, ["MODEL.PIXEL_STD", [57.4, 57.1, 58.4]], ["PIXEL_STD [1.0, 1.0, 1.0]", "57.4"]),
        (MSRA, ["MODEL.RESNETS.STRIDE_IN_1X1", False], ["STRIDE_IN_1X1 True", "is False"]),
        ("mine.pth", ["MODEL.RESNETS.STRIDE_IN_1X1", False], []),
    ],
)
def test_weights_of_other_pixels_or_strides(weights, options, named, caplog):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.WEIGHTS", weights, *options])
    with caplog.at_level(logging.WARNING):
        check_preprocessing(cfg)
    assert len(caplog.messages) == bool(named)
    assert all(name in caplog.text for name in named)


@pytest.mark.parametrize(
    "model, head", [("RetinaNet", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")]
)
def test_other_classes(model, head, request):
    MetadataCatalog.get("three").thing_classes = ["a", "b", "c"]
    request.addfinalizer(lambda: MetadataCatalog.remove("three"))
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = model
    with pytest.raises(ValueError, match=f"{head}.NUM_CLASSES is 80, but data set three has 3"):
        check_classes(cfg, "three")
    cfg.MODEL[head].NUM_CLASSES = 3
    check_classes(cfg, "three")


@pytest.fixture
def data_with_keypoints():
    """`seventeen` and `five` keypoints, `names` of them without what is left and right, `none`."""
    for name, count in (("seventeen", 17), ("five", 5)):
        names = [str(k) for k in range(count)]
        MetadataCatalog.get(name).set(keypoint_names=names, keypoint_flip_map=[])
    MetadataCatalog.get("names").keypoint_names = [str(k) for k in range(17)]
    MetadataCatalog.get("none").thing_classes = ["a"]
    yield
    for name in ("seventeen", "five", "names", "none"):
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "train, test, named",
    [
        (["none"], ["seventeen"], "data set none has no keypoint_names in its Metadata"),
        (["seventeen"], ["none"], "data set none has no keypoint_names in its Metadata"),
        (["seventeen", "names"], [], "data set names has no keypoint_flip_map"),
        (["five"], ["five"], "NUM_KEYPOINTS is 17, but data set five has 5 keypoints"),
        ([], ["seventeen"], "DATASETS.TRAIN, which is empty"),
    ],
)
def test_data_without_keypoints(train, test, named, data_with_keypoints):
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = True, train, test
    with pytest.raises(ValueError, match=named):
        check_keypoints(cfg, test)
    cfg.MODEL.KEYPOINT_ON = False
    check_keypoints(cfg, test)
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.META_ARCHITECTURE = True, "SemanticSegmentor"
    check_keypoints(cfg, test)


def test_data_with_keypoints(data_with_keypoints):
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN = True, ["seventeen"]
    check_keypoints(cfg, ["seventeen"])
    cfg.DATASETS.TRAIN, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = ["five"], 5
    check_keypoints(cfg, ["five"])


def test_sigmas_of_the_keypoints(data_with_keypoints):
    """detectron2 compares their number with the data's when the training is over."""
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = True, 5
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ["five"], ["five"]
    for sigmas, count in ([], 17), ([0.05] * 4, 4), ([0.05] * 17, 17):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
        with pytest.raises(
            ValueError, match=f"KEYPOINT_OKS_SIGMAS has {count} numbers, .* is 5: g"
        ):
            check_keypoints(cfg, ["five"])
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * 5
    check_keypoints(cfg, ["five"])


class StrangeHeads(StandardROIHeads):
    """Heads of somebody else, which have hard NMS and no hard example mining."""


@reads("MODEL.ROI_HEADS.NMS_TYPE", "MODEL.ROI_BOX_HEAD.POOLER_TYPE")
class SoftHeads(StandardROIHeads):
    """Heads of somebody else, which say that they have soft-NMS."""


class MinedSoftHeads(OHEMROIHeads, SoftHeads):
    """Both bases declare keys."""


@reads("MODEL.RPN.IMAGE_STRIDE")
class Mixin:
    pass


class MixedHeads(Mixin, OHEMROIHeads):
    """Here too, and the first base has no base of its own."""


HEADS = StrangeHeads, SoftHeads, MinedSoftHeads, MixedHeads


@pytest.fixture
def heads_of_others():
    for heads in HEADS:
        ROI_HEADS_REGISTRY.register(heads)
    yield
    for heads in HEADS:
        ROI_HEADS_REGISTRY._obj_map.pop(heads.__name__)


RETINANET = {"MODEL.META_ARCHITECTURE": "RetinaNet"}
SEGMENTOR = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}
GAUSSIAN = {"MODEL.ROI_HEADS.NMS_TYPE": "gaussian"}


@pytest.mark.parametrize(
    "options, named",
    [
        # Heads of detectron2, and others that do not declare the key
        (GAUSSIAN, "reads MODEL.ROI_HEADS.NMS_TYPE gaussian"),
        ({"MODEL.ROI_HEADS.NAME": "StrangeHeads", **GAUSSIAN}, "StrangeHeads"),
        (
            {"MODEL.ROI_HEADS.NAME": "SoftHeads", "MODEL.ROI_BOX_HEAD.OHEM_NUM": 8},
            "OHEM_NUM 8",
        ),
        ({"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "DeformROIPool"}, "POOLER_TYPE DeformROIPool"),
        ({"MODEL.DYNAMIC_RCNN.SYNC": False}, "DynamicROIHeads"),
        ({"MODEL.MIMIC.NUM_SAMPLES": 4}, "MimicRCNN"),
        ({"MODEL.RPN.IMAGE_STRIDE": 32}, "MODEL.PROPOSAL_GENERATOR.NAME MXNetRPN"),
        ({"MODEL.RESNETS.STEM_CEIL_POOL": True}, "build_deform_resnet_backbone"),
        # What is read by heads that the model does not have
        ({"MODEL.ROI_HEADS.NAME": "OHEMROIHeads", **RETINANET, **GAUSSIAN}, "RetinaNet"),
        ({"TEST.WINDOW_SIZE": [64, 64], **SEGMENTOR}, "MODEL.META_ARCHITECTURE DeepLab"),
        # Two that no heads read together
        ({"MODEL.MIMIC.NUM_SAMPLES": 4, "MODEL.DYNAMIC_RCNN.SYNC": False}, "MimicRCNN"),
        # No test-time augmentation
        ({"TEST.AUG.ENABLED": True, **RETINANET}, "TEST.AUG.ENABLED"),
        ({"TEST.AUG.SCALES": [[480, 800]], **RETINANET}, "TEST.AUG.SCALES"),
    ],
)
def test_keys_that_nothing_reads(options, named, heads_of_others):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    with pytest.raises(ValueError) as e:
        check_keys(cfg)
    assert named in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"MODEL.ROI_HEADS.NAME": "SoftHeads", **GAUSSIAN},
        {"MODEL.ROI_HEADS.NAME": "OHEMROIHeads", **GAUSSIAN, "MODEL.ROI_BOX_HEAD.OHEM_NUM": 8},
        {"MODEL.ROI_MASK_HEAD.POOLER_TYPE": "DeformROIPool"},  # MASK_ON is False
        {"TEST.AUG.ENABLED": True, "TEST.AUG.SCALES": [[480, 800]]},
        {"SOLVER.OPTIMIZER": "AdamW", "DATALOADER.EXACT_RESUME": True},
        # Of detectron2's own DeepLab
        {"MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 128, **SEGMENTOR},
        {"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.75, **SEGMENTOR},
        {"MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1], **SEGMENTOR},
        {"MODEL.ROI_HEADS.NAME": "MinedSoftHeads", "MODEL.ROI_BOX_HEAD.OHEM_NUM": 8, **GAUSSIAN},
        {"MODEL.ROI_HEADS.NAME": "MixedHeads", "MODEL.RPN.IMAGE_STRIDE": 4, **GAUSSIAN},
        # Declared by heads of somebody else
        {"MODEL.ROI_HEADS.NAME": "SoftHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "MyPool"},
    ],
)
def test_keys_that_are_read(options, heads_of_others):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"  # which heads of this project need
    cfg.merge_from_list([part for pair in options.items() for part in pair])
    check_keys(cfg)


@pytest.mark.parametrize(
    "more, problem",
    [
        (dict(stuff_classes=None), "has no stuff_classes in its Metadata, the names"),
        (dict(ignore_label=None), "has the ignore_label None in its Metadata, expected a number"),
        (dict(ignore_label=300), "has the ignore_label 300 in its Metadata"),
        (dict(ignore_label=-1), "has the ignore_label -1 in its Metadata"),
    ],
    ids=str,
)
def test_metadata_of_pixels(more, problem, request):
    """The evaluator would fail without them when the training is over."""
    name = "pixels_of_a_test"
    request.addfinalizer(lambda: MetadataCatalog.remove(name))
    known = dict(stuff_classes=["a", "b"], ignore_label=255, evaluator_type="sem_seg") | more
    MetadataCatalog.get(name).set(**{k: v for k, v in known.items() if v is not None})
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TEST = "SemanticSegmentor", (name,)
    with pytest.raises(ValueError, match=f"data set {name} {problem}"):
        check_evaluators(cfg)


@pytest.mark.parametrize("ignored", [0, 255])
def test_metadata_of_pixels_that_can_be_used(ignored, request):
    name = "pixels_of_a_test"
    request.addfinalizer(lambda: MetadataCatalog.remove(name))
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b"], ignore_label=ignored, evaluator_type="sem_seg"
    )
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TEST = "SemanticSegmentor", (name,)
    check_evaluators(cfg)
