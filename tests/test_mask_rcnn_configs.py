"""The leaves of configs/Mask-RCNN, key by key: detectron2's config and the differences."""

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg

from dcn_projects import add_dcn_config

ALL = {
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "MODEL.RPN.SMOOTH_L1_BETA": 0.1111,
    "MODEL.RPN.BOUNDARY_THRESH": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "SOLVER.WEIGHT_DECAY_BIAS": 0.0,
    "TEST.EVAL_PERIOD": 12500,
    "SOLVER.STEPS": (120000, 160000),
    "SOLVER.MAX_ITER": 180000,
}
FPN = ALL | {
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "INPUT.MAX_SIZE_TRAIN": 1344,
    "INPUT.MAX_SIZE_TEST": 1344,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
}
GN_BOX = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
}
GN = GN_BOX | {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.FPN.NORM": "GN",
    "MODEL.ROI_MASK_HEAD.NORM": "GN",
}
TENSORPACK = {
    "MODEL.BACKBONE.NAME": "build_tensorpack_resnet_fpn_backbone",
    "MODEL.ROI_BOX_HEAD.NAME": "TensorpackBoxHead",
    "MODEL.ROI_MASK_HEAD.NAME": "TensorpackMaskHead",
}
SYNC_BN = {
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "",
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "TEST.PRECISE_BN.ENABLED": False,
}
SUPER_QUICK = {
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "INPUT.MIN_SIZE_TRAIN": (600,),
    "INPUT.MIN_SIZE_TEST": 600,
    "INPUT.MAX_SIZE_TRAIN": 1024,
    "INPUT.MAX_SIZE_TEST": 1024,
    "SOLVER.STEPS": (75000, 115000),
    "SOLVER.MAX_ITER": 140000,
}
R101 = {"MODEL.RESNETS.DEPTH": 101}

BOX, MASK = "COCO-Detection/faster_rcnn", "COCO-InstanceSegmentation/mask_rcnn"
# leaf: (detectron2's config, what differs)
LEAVES = {
    "faster_rcnn_R_50_C4_superquick": (BOX + "_R_50_C4_1x", ALL | SUPER_QUICK),
    "faster_rcnn_R_50_C4_2x": (BOX + "_R_50_C4_1x", ALL),
    "faster_rcnn_R_50_FPN_2x": (BOX + "_R_50_FPN_1x", FPN),
    "mask_rcnn_R_50_C4_2x": (MASK + "_R_50_C4_1x", ALL),
    "mask_rcnn_R_50_FPN_2x": (MASK + "_R_50_FPN_1x", FPN),
    "mask_rcnn_R_50_FPN_2x_gn_box_head": (MASK + "_R_50_FPN_1x", FPN | GN_BOX),
    "mask_rcnn_R_50_FPN_2x_gn": ("Misc/mask_rcnn_R_50_FPN_3x_gn", FPN | GN),
    "mask_rcnn_R_50_FPN_2x_gn_tensorpack": (
        "Misc/mask_rcnn_R_50_FPN_3x_gn", FPN | GN | TENSORPACK
    ),
    "mask_rcnn_R_101_C4_2x": (MASK + "_R_101_C4_3x", ALL | R101),
    "mask_rcnn_R_101_FPN_2x": (MASK + "_R_101_FPN_3x", FPN | R101),
    "mask_rcnn_R_50_FPN_2x_syncbn": ("Misc/mask_rcnn_R_50_FPN_3x_syncbn", FPN | SYNC_BN),
}  # fmt: skip


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf(leaf):
    cfg = get_cfg()
    add_dcn_config(cfg)
    expected = cfg.clone()
    cfg.merge_from_file(f"configs/Mask-RCNN/{leaf}.yaml")
    base, differences = LEAVES[leaf]
    expected.merge_from_file(model_zoo.get_config_file(base + ".yaml"))
    for pair in differences.items():
        expected.merge_from_list(list(pair))

    ignored = {"MODEL.WEIGHTS"}
    if not cfg.MODEL.MASK_ON:  # detectron2's configs of Faster R-CNN have a mask head too
        ignored |= {f"MODEL.ROI_MASK_HEAD.{key}" for key in cfg.MODEL.ROI_MASK_HEAD}
    found, expected = dict(flat(cfg)), dict(flat(expected))
    wrong = {
        key: (found[key], expected[key])
        for key in found
        if found[key] != expected[key] and key not in ignored
    }
    assert not wrong
    assert cfg.MODEL.WEIGHTS.startswith(f"weights/ImageNet-R{cfg.MODEL.RESNETS.DEPTH}-")
    assert cfg.MODEL.WEIGHTS.endswith("-FPN.pkl" if "FPN" in leaf else "-C4.pkl")
