"""What is said of data sets that are not there."""

import gc
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from dcn_projects.data import check_datasets, loading
from dcn_projects.data.datasets import expected_paths


@pytest.fixture(autouse=True)
def nothing_there(root, monkeypatch):
    monkeypatch.setattr("dcn_projects.data.datasets.check_files.ROOT", str(root))


@pytest.fixture
def own_dataset(tmp_path):
    """A user's data set: the image folder is there, the annotations are not."""
    register_coco_instances("my_own", {}, str(tmp_path / "my.json"), str(tmp_path))
    yield tmp_path / "my.json"
    DatasetCatalog.remove("my_own")
    MetadataCatalog.remove("my_own")


@pytest.mark.parametrize(
    "name, words",
    [
        ("digits_coco_train", ["digits_coco/recipe.json", "make_dataset.py --format coco"]),
        ("digits_coco_hard_train", ["digits_coco_hard/recipe.json", "--format coco --hard"]),
        ("digits_voc_test", ["digits_voc/recipe.json", "make_dataset.py --format voc"]),
        ("digits_cityscapes_sem_seg_val", ["make_dataset.py --format cityscapes"]),
        (
            "voc_2007_trainval_easy",
            ["set DETECTRON2_DATASETS", "holds VOC2007/ImageSets/Main/trainval.txt"],
        ),
        ("digits_coco_tset", ["no data set", "digits_coco_test"]),
        ("my_own", ["my.json", "with which it is registered"]),
    ],
)
def test_missing_data_is_named_with_a_remedy(own_dataset, name, words):
    with pytest.raises(FileNotFoundError) as error:
        check_datasets([name])
    message = str(error.value)
    assert "\n" not in message and name in message
    assert all(word in message for word in words), message


def test_the_second_name_is_checked_too(own_dataset):
    own_dataset.write_text(json.dumps({}))
    check_datasets(["my_own"])
    with pytest.raises(FileNotFoundError, match="digits_coco_train"):
        check_datasets(["my_own", "digits_coco_train"])


@pytest.mark.parametrize(
    "name, ends",
    [
        ("coco_2017_val", ["coco/annotations/instances_val2017.json", "coco/val2017"]),
        ("voc_2012_trainval", ["VOC2012/ImageSets/Main/trainval.txt", "Annotations", "JPEGImages"]),
        ("cityscapes_fine_sem_seg_val", ["leftImg8bit/val/", "gtFine/val/"]),
    ],
)
def test_paths_of_detectron2s_own(name, ends):
    for path, end in zip(expected_paths(name), ends, strict=True):
        assert path.endswith(end)


@pytest.mark.parametrize(
    "error",
    [ArithmeticError, AssertionError, AttributeError, IndexError, RecursionError, TypeError],
)
def test_errors_of_loaders(error):
    """As odd annotations bring them about, in loaders of users too."""
    with pytest.raises(OSError, match="^data set mine: it went wrong$"):
        with loading(["mine"]):
            raise error("it went wrong")


def test_no_search_for_cycles_while_data_are_loaded():
    with loading(["mine"]):
        with loading(["other"]):
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(OSError), loading(["mine"]):
        raise ValueError("wrong")
    assert gc.isenabled()
