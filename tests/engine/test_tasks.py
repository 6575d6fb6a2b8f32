"""The kinds of models, and what is checked for each before a training."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

from dcn_projects import add_dcn_config
from dcn_projects.engine import (
    TASKS,
    Task,
    check_classes,
    check_keys,
    check_kind,
    register_task,
    task_of,
)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_dcn_config(cfg)
    return cfg


@pytest.fixture
def queries():
    """A kind of model that the package does not know, with a registered name."""

    class ToyQueries(torch.nn.Module):
        pass

    META_ARCH_REGISTRY.register(ToyQueries)
    yield ToyQueries
    META_ARCH_REGISTRY._obj_map.pop("ToyQueries")


@pytest.fixture(autouse=True)
def tasks_as_they_were():
    rows = len(TASKS)
    yield
    del TASKS[rows:]


@pytest.mark.parametrize(
    "model, num_classes, output",
    [
        ("GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES", "instances"),
        ("RFCN", "MODEL.ROI_HEADS.NUM_CLASSES", "instances"),
        ("PanopticFPN", "MODEL.ROI_HEADS.NUM_CLASSES", "instances"),
        ("RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "instances"),
        ("SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "sem_seg"),
        ("DeepLab", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "sem_seg"),
    ],
)
def test_kinds_of_models(model, num_classes, output, cfg):
    cfg.MODEL.META_ARCHITECTURE = model
    task = task_of(cfg)
    assert (task.num_classes, task.output) == (num_classes, output)


def test_an_unknown_kind_is_refused(queries, cfg):
    cfg.MODEL.META_ARCHITECTURE = "ToyQueries"
    with pytest.raises(ValueError, match="ToyQueries.*register_task"):
        task_of(cfg)


def test_a_row_for_a_new_kind(queries, cfg, request):
    register_task(
        Task(
            architectures=(queries,),
            num_classes="MODEL.RETINANET.NUM_CLASSES",
            mapper=DatasetMapper,
        )
    )
    cfg.MODEL.META_ARCHITECTURE = "ToyQueries"
    assert task_of(cfg).mapper is DatasetMapper
    MetadataCatalog.get("three").thing_classes = ["a", "b", "c"]
    request.addfinalizer(lambda: MetadataCatalog.remove("three"))
    with pytest.raises(ValueError, match="RETINANET.NUM_CLASSES is 80, but data set three has 3"):
        check_classes(cfg, "three")
    check_keys(cfg)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED.*ToyQueries"):
        check_keys(cfg)


def test_the_nearest_base_and_the_latest_row_count(cfg):
    register_task(Task(architectures=(GeneralizedRCNN,), num_classes="MODEL.RETINANET.NUM_CLASSES"))
    cfg.MODEL.META_ARCHITECTURE = "RFCN"
    assert task_of(cfg).num_classes == "MODEL.RETINANET.NUM_CLASSES"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(output="boxes"), "'boxes'"),
        (dict(components={"MODEL.TOY.NAME": ""}), "MODEL.TOY.NAME.*MODEL.BACKBONE.NAME"),
    ],
)
def test_a_row_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Task(architectures=(), num_classes="", **options)


def test_a_row_for_pixels_has_what_they_need(cfg):
    """Also the number of classes, with which the labels of a file are compared."""
    task = Task(architectures=(), num_classes="MODEL.ROI_HEADS.NUM_CLASSES", output="sem_seg")
    assert task.evaluators.keys() == {"sem_seg", "cityscapes_sem_seg"}
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    assert task.build_mapper(cfg, is_train=False).num_classes == 7


def test_proposals_have_no_classes(cfg, request):
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    MetadataCatalog.get("three").thing_classes = ["a", "b", "c"]
    request.addfinalizer(lambda: MetadataCatalog.remove("three"))
    check_classes(cfg, "three")
    check_keys(cfg)


def test_data_of_another_kind(cfg, request):
    MetadataCatalog.get("pixels").evaluator_type = "sem_seg"
    request.addfinalizer(lambda: MetadataCatalog.remove("pixels"))
    with pytest.raises(ValueError, match="finds objects, which data set pixels does not have"):
        check_kind(cfg, "pixels")
