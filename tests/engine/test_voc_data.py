"""What a training says of data in the layout of Pascal VOC, whoever registered them."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc as register_with_detectron2

from dcn_projects.data import register_pascal_voc
from dcn_projects.engine import Trainer, check_data, read_config
from tests.digits_data import CONFIG, SMALL
from tests.voc_data import annotation_xml, object_xml, write_voc

MASKS = "Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml"
CLASSES = [*"0123456789"]
LINE = (
    "{}/Annotations/b.xml: an object is of the class 'ten', which is none of the data set's "
    "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9). Correct it, or add the class where the data set is registered"
)


def register(registered_by, folder):
    if registered_by == "detectron2":
        register_with_detectron2("mine", str(folder), "train", 2012, CLASSES)
    else:
        register_pascal_voc("mine", CLASSES, folder, "train")


@pytest.fixture(params=["detectron2", "dcn_projects"])
def folder(request, tmp_path):
    register(request.param, tmp_path)
    yield tmp_path
    DatasetCatalog.remove("mine")
    MetadataCatalog.remove("mine")


@pytest.fixture
def cfg():
    options = f"{SMALL} DATASETS.TRAIN ('mine',) DATALOADER.NUM_WORKERS 0"
    return read_config(CONFIG, options.split())


def test_boxes_are_evaluated_of_models_with_masks(folder):
    write_voc(folder, {"a": annotation_xml(object_xml("1")), "b": annotation_xml(object_xml("2"))})
    MetadataCatalog.get("mine").set(evaluator_type="pascal_voc")  # detectron2 leaves it to the user
    cfg = read_config(MASKS, ["DATASETS.TRAIN", "('mine',)"])
    check_data(cfg, [], ["mine"])
    with pytest.raises(OSError, match="an object has no mask"):
        check_data(cfg, ["mine"], [])


def test_training_data_are_checked(folder, cfg):
    write_voc(folder, {"a": annotation_xml(object_xml("1")), "b": annotation_xml(object_xml("2"))})
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert {record["image_id"] for record in batch} <= {"a", "b"}

    path = folder / "Annotations/b.xml"
    path.write_text(annotation_xml(object_xml("ten")))
    with pytest.raises(OSError) as e:
        check_data(cfg, ["mine"], [])
    assert str(e.value) == LINE.format(folder)
