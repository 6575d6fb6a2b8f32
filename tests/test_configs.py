"""Every leaf under configs/ builds, trains a step, evaluates, and has no key that nothing reads."""

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.engine import Trainer, task_of
from tests.yaml_files import LEAVES, ROOT, all_keys_of

# What a plain R-FCN leaves to the deformable one, so that POOLER_TYPE alone is the difference.
OF_DEFORMABLE_RFCN = {
    "MODEL.ROI_BOX_HEAD.POOLER_GAMMA",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
}
# Many leaves that are rungs of a ladder: they are run with narrow layers, to save time.
NARROW = ("DCNv2", "Mask-RCNN")


@pytest.fixture
def reads(monkeypatch):
    """Records which keys are read. A node is known by the set of its keys, as it may be a copy."""
    seen = set()
    original = CfgNode.__getattr__

    def recording(self, name):
        seen.add((frozenset(self), name))
        return original(self, name)

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    return seen


@pytest.fixture
def random_dataset(tmp_path):
    """
    Registers four noise images with boxes and pixels of random classes; yields a function:
    (K, kind of evaluator) -> name.
    """
    names = []

    def register(num_classes, evaluator_type="coco"):
        rng = np.random.default_rng(0)
        records = []
        for i in range(4):
            path = tmp_path / f"{i}.png"
            Image.fromarray(rng.integers(0, 256, (192, 256, 3), dtype=np.uint8)).save(path)
            labels = rng.integers(0, num_classes, (192, 256), dtype=np.uint8)
            labels[:20] = 255
            Image.fromarray(labels).save(tmp_path / f"{i}_labels.png")
            boxes = [[16, 16, 120, 140], [80, 40, 240, 180]]
            records.append(
                dict(
                    file_name=str(path), image_id=i, height=192, width=256,
                    sem_seg_file_name=str(tmp_path / f"{i}_labels.png"),
                    annotations=[
                        dict(bbox=box, bbox_mode=BoxMode.XYXY_ABS, iscrowd=0,
                             category_id=int(rng.integers(num_classes)),
                             segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]])
                        for box in boxes
                        for x0, y0, x1, y1 in [box]
                    ],
                )
            )  # fmt: skip
        name = f"random_{tmp_path.name}"
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            thing_classes=[str(c) for c in range(num_classes)],
            stuff_classes=[str(c) for c in range(num_classes)],
            ignore_label=255,
            evaluator_type=evaluator_type,
        )
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_narrow(cfg):
    """Fewer channels; multiples of 32, as GroupNorm wants them."""
    resnet, box_head, mask_head = cfg.MODEL.RESNETS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    resnet.STEM_OUT_CHANNELS = resnet.RES2_OUT_CHANNELS = resnet.WIDTH_PER_GROUP = 32
    cfg.MODEL.FPN.OUT_CHANNELS = box_head.FC_DIM = mask_head.CONV_DIM = 32
    for head in (box_head, mask_head):
        head.POOLER_FC_DIM = 32
    box_head.CONV_DIM = 32
    box_head.REDUCED_DIM = 32 if box_head.REDUCED_DIM else 0
    cfg.MODEL.MIMIC.NUM_SAMPLES, cfg.MODEL.MIMIC.PATCH_SIZE = 2, 64


@pytest.mark.parametrize("path", LEAVES, ids=[str(p.relative_to(ROOT)) for p in LEAVES])
def test_config(path, tmp_path, random_dataset, reads):
    seed_all_rng(0)
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(str(path))  # fails on an unknown key
    # The real network on images that are small, but hold the smallest anchor of VOC.
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    if task_of(cfg).output == "sem_seg":
        name, task = random_dataset(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "sem_seg"), "sem_seg"
        cfg.INPUT.CROP.SIZE = [96, 128]
        if cfg.MODEL.SEM_SEG_HEAD.NORM == "SyncBN":  # for GPUs only
            cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    else:
        name, task = random_dataset(cfg.MODEL.ROI_HEADS.NUM_CLASSES), "bbox"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = [192], 96 if task == "sem_seg" else 192
    if path.parent.name in NARROW:
        make_narrow(cfg)
    cfg.TEST.AUG.SCALES = [[96, 144], [192, 288]] if cfg.TEST.AUG.SCALES else []
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.RPN.BOUNDARY_THRESH = -1  # the largest anchors are never inside such images
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 20000  # all, so that each level of a pyramid learns
    # Few RoIs, as res5 on each of them takes the most time.
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = min(cfg.MODEL.RPN.POST_NMS_TOPK_TEST, 20)
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.freeze()

    reads.clear()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    # A bias stands still where as many samples pull it up as down, the offsets of a level of the
    # pyramid where no RoI is on it.
    still = [
        name
        for name, p in trainer.model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert all(name.endswith("bias") or "_pooler." in name for name in still), still
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert task in trainer._last_eval_results

    unread = []
    for name in sorted(all_keys_of(path) - {"VERSION"}):
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "PSROIPool" and name in OF_DEFORMABLE_RFCN:
            continue
        *parents, key = name.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        if (frozenset(node), key) not in reads:
            unread.append(name)
    assert not unread, f"nothing reads {unread}"


@pytest.mark.parametrize(
    "enabled,merge,size",
    [(False, "raw", (96, 128)), (True, "detections", (96, 128)), (True, "raw", (192, 256))],
)
def test_views_are_made_from_the_file(enabled, merge, size, random_dataset):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MERGE = enabled, merge
    loader = Trainer.build_test_loader(cfg, random_dataset(2))
    (record,) = next(iter(loader))
    assert record["image"].shape[1:] == size and (record["height"], record["width"]) == (192, 256)
