import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image
from pycocotools import mask as run_lengths

from dcn_projects import add_dcn_config
from dcn_projects.data import CheckedDatasetMapper
from dcn_projects.engine import read_config

OBJECT = dict(bbox=[4, 4, 20, 20], bbox_mode=BoxMode.XYXY_ABS, category_id=1, iscrowd=0)
RLE = dict(counts=[0, 16], size=[4, 4])  # of another image


@pytest.mark.parametrize(
    "change",
    [dict(bbox=None), dict(bbox=[1, 2, 3]), dict(category_id=None), dict(segmentation=RLE)],
    ids=str,
)
def test_damaged_annotations_name_their_image(change, tmp_path):
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    mapper = CheckedDatasetMapper(cfg, is_train=True)
    path = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(path)
    record = dict(file_name=str(path), height=32, width=32, image_id=0)
    mask = dict(segmentation=[[4, 4, 20, 4, 20, 20]])
    assert len(mapper(dict(record, annotations=[OBJECT | mask]))["instances"]) == 1
    with pytest.raises(OSError, match="Cannot use .*image.png"):
        mapper(dict(record, annotations=[OBJECT | mask | change]))


# Images without objects, or whose objects are outside of the crop

MASK_RCNN = "Mask-RCNN/mask_rcnn_R_14_FPN_gn_digits.yaml"
CROP = "INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute INPUT.CROP.SIZE [48,48]"
SMALL = "MODEL.DEVICE cpu INPUT.MIN_SIZE_TRAIN (64,) INPUT.RANDOM_FLIP none"
KEYPOINTS = (
    "MODEL.KEYPOINT_ON True MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (8,) "
    "DATASETS.TRAIN ('keypoints_coco_2017_train',)"
)
CROWD = np.zeros((96, 96), np.uint8, order="F")
CROWD[:50] = 1
CROWD = dict(OBJECT, iscrowd=1, segmentation=run_lengths.encode(CROWD))
POLYGON = dict(OBJECT, segmentation=[[4, 4, 20, 4, 20, 20]], keypoints=[10, 8, 2] * 17)
CORNER = dict(
    OBJECT, bbox=[0, 0, 4, 4], segmentation=[[0, 0, 4, 0, 4, 4]], keypoints=[1, 1, 2] * 17
)
IMAGES = {"objects": [POLYGON, CROWD], "none": [], "crowds": [CROWD, CROWD], "corner": [CORNER]}


@pytest.fixture
def mapped(tmp_path):
    """
    mapped(cfg, name) is what the model learns from one of IMAGES. Of "corner" the crop has nothing,
    of "objects" it has all.
    """
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)).save(path)

    def mapped(cfg, name, seed=0):
        mapper = CheckedDatasetMapper(cfg, is_train=True)
        wanted = {"objects": 1}.get(name, 0)
        while True:
            np.random.seed(seed)
            record = dict(file_name=str(path), height=96, width=96, annotations=IMAGES[name])
            found = mapper(record)
            if len(found["instances"]) == wanted or not cfg.INPUT.CROP.ENABLED:
                return found
            seed += 1
            assert seed < 100

    return mapped


@pytest.mark.parametrize("format", ["polygon", "bitmask"])
@pytest.mark.parametrize("options", ["", KEYPOINTS, "MODEL.MASK_ON False"])
@pytest.mark.parametrize("name", IMAGES)
def test_crops(name, options, format, mapped):
    cfg = read_config(MASK_RCNN, f"{SMALL} {CROP} INPUT.MASK_FORMAT {format} {options}".split())
    found = mapped(cfg, name)
    assert found["image"].shape == (3, 64, 64)  # of 48 x 48
    target = found["instances"]
    assert target.image_size == (64, 64) and target.gt_boxes.tensor.shape == (len(target), 4)
    assert len(target.gt_classes) == len(target) == (name == "objects")
    if name == "objects":
        assert target.has("gt_masks") == cfg.MODEL.MASK_ON
        assert target.has("gt_keypoints") == cfg.MODEL.KEYPOINT_ON


@pytest.mark.parametrize(
    "config, options",
    [
        (MASK_RCNN, ""),
        (MASK_RCNN, "INPUT.MASK_FORMAT bitmask"),
        (MASK_RCNN, KEYPOINTS),
        (
            MASK_RCNN,
            "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True",
        ),
        ("DCNv2/mask_rcnn_R_14_FPN_gn_mdconv_mdpool_mimic_digits.yaml", ""),
        ("Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml", "MODEL.MASK_ON True"),
        ("R-FCN/deformable_rfcn_R_14_C5_digits.yaml", ""),
    ],
)
def test_a_step_of_training(config, options, mapped):
    cfg = read_config(config, f"{SMALL} {CROP} {options}".split())
    torch.manual_seed(0)
    model = build_model(cfg)
    images = {name: mapped(cfg, name) for name in IMAGES}
    for names in (
        ["none", "crowds"],
        ["corner", "none"],
        ["objects", "corner"],
        ["none", "objects"],
    ):
        model.zero_grad()
        with EventStorage():
            losses = model([images[name] for name in names])
        sum(losses.values()).backward()
        for name, p in model.named_parameters():
            if p.requires_grad:  # those of other processes wait for all of them
                assert p.grad is not None and p.grad.isfinite().all(), (names, name)
        if "objects" in names:
            assert not cfg.MODEL.MASK_ON or losses["loss_mask"] > 0
