"""Training data that depend on the seed and the iteration alone."""

import itertools

import detectron2.data.build
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, build_detection_train_loader, detection_utils
from detectron2.utils import comm
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.data import ExactTrainLoader, check_exact_resume

NUM_IMAGES, BATCHES = 11, 14


def make_cfg(seed=3, **loader):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.DATASETS.TRAIN = ("stream_test",)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SEED = seed
    cfg.DATALOADER.update({"EXACT_RESUME": True, "NUM_WORKERS": 0, **loader})
    return cfg


def of_sizes(sizes):
    return [dict(image_id=i, annotations=[{}], **size) for i, size in enumerate(sizes)]


@pytest.fixture
def register():
    """register(records)"""
    yield lambda records: DatasetCatalog.register("stream_test", lambda: records)
    DatasetCatalog.remove("stream_test")


@pytest.fixture
def dataset(register):
    """Eleven records, four of them wider than high."""
    register(of_sizes(dict(width=10 + (i % 3 == 1), height=10) for i in range(NUM_IMAGES)))


def batches(cfg, first=0, count=BATCHES):
    """Of each batch the images, what their augmentation drew and what the model draws after."""

    def mapper(record):
        if "file_name" in record:
            image = detection_utils.read_image(record["file_name"])
            detection_utils.check_image_size(record, image)
        return {**record, "drawn": torch.rand(()).item()}

    loader = ExactTrainLoader(
        build_detection_train_loader.from_config(cfg, mapper=mapper), cfg.SEED
    )
    loader.first_iteration = first
    result = []
    for batch in itertools.islice(loader, count):
        assert len({x["width"] for x in batch}) == 1 and len(batch) == 3
        result.append(([(x["image_id"], x["drawn"]) for x in batch], torch.rand(()).item()))
    return result


@pytest.mark.parametrize("first", range(BATCHES))
def test_from_any_iteration(first, dataset):
    torch.manual_seed(first)  # what was drawn before does not matter
    assert batches(make_cfg(), first, BATCHES - first) == batches(make_cfg())[first:]


def test_workers_of_the_loader_share_the_images(dataset):
    expected = batches(make_cfg())
    for first in (0, 1, 6):
        assert batches(make_cfg(NUM_WORKERS=2), first, 6) == expected[first : first + 6]


def test_records_without_sizes(register, tmp_path):
    """As in semantic segmentation: the files tell. Half of those that are wide are turned."""
    files = []
    for i in range(NUM_IMAGES):
        exif = Image.Exif()
        exif[0x0112] = 6 if i % 2 else 3  # a quarter, half a turn
        size = (11, 10) if (i % 3 == 1) != (i % 2) else (10, 11)
        files.append(dict(file_name=str(tmp_path / f"{i}.jpg")))
        Image.new("RGB", size).save(files[-1]["file_name"], exif=exif)
    register(of_sizes(files))
    expected = batches(make_cfg())
    for first in (1, 6, 11):
        assert batches(make_cfg(), first, BATCHES - first) == expected[first:]


def test_every_epoch_is_another_order_of_all_images(dataset):
    drawn = [x for images, _ in batches(make_cfg(), count=200) for x in images]
    counts = [[i for i, _ in drawn].count(i) for i in range(NUM_IMAGES)]
    # Of 600 images, at most a few wait for others of their kind.
    assert max(counts) - min(counts) <= 2 and sum(counts) == 600
    assert len({value for _, value in drawn}) == 600
    epochs = {tuple(i for i, _ in drawn[start : start + 9]) for start in range(0, 99, 11)}
    assert len(epochs) == 9


def test_seeds_differ(dataset):
    assert batches(make_cfg(seed=3)) != batches(make_cfg(seed=4))


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(seed=-1), "SEED"),
        (dict(SAMPLER_TRAIN="RepeatFactorTrainingSampler"), "SAMPLER_TRAIN"),
        (dict(ASPECT_RATIO_GROUPING=False), "ASPECT_RATIO_GROUPING"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_exact_resume(make_cfg(**options))


def test_another_key_that_makes_it_impossible():
    cfg = make_cfg()
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ValueError, match="TEST.PRECISE_BN"):
        check_exact_resume(cfg)


def test_two_processes_share_the_stream(dataset, monkeypatch):
    """Together they see what one sees, none of it twice."""
    cfg = make_cfg()
    cfg.SOLVER.IMS_PER_BATCH = 6
    for module in (comm, detectron2.data.build):
        monkeypatch.setattr(module, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 0)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen.append([value for images, _ in batches(cfg) for _, value in images])
        assert batches(cfg, 5, 4) == batches(cfg)[5:9]
    assert not set(seen[0]) & set(seen[1])
