import pytest
from detectron2.config import get_cfg
from detectron2.structures import BoxMode
from PIL import Image

from dcn_projects import add_dcn_config
from dcn_projects.data import CheckedDatasetMapper

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
