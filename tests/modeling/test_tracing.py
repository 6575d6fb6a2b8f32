"""Traced models find what the models find, also in images of other sizes than the traced one."""

import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import detectron2
import pytest
import torch
from detectron2.modeling import build_model
from torch.testing import assert_close

from dcn_projects.modeling import MultiScaleTTA
from tests.modeling.narrow_models import NARROW, load

TRACED = (96, 128)
SIZES = [TRACED, (130, 99), (75, 201)]  # the others are no multiples of the strides

HEADS = """MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.001
    MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_BOX_HEAD.POOLER_FC_DIM 16 MODEL.RPN.CONV_DIMS [16]
    MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_MASK_HEAD.POOLER_FC_DIM 16 MODEL.FPN.OUT_CHANNELS 16
    MODEL.RPN.PRE_NMS_TOPK_TEST 200 MODEL.RPN.POST_NMS_TOPK_TEST 1000
    TEST.DETECTIONS_PER_IMAGE 20"""
REDUCED = "MODEL.ROI_BOX_HEAD.REDUCED_DIM 8"
GAUSSIAN = "MODEL.ROI_HEADS.NMS_TYPE gaussian"
LINEAR = "MODEL.ROI_HEADS.NMS_TYPE linear"
GN = """MODEL.RESNETS.NORM GN MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 32
    MODEL.RESNETS.WIDTH_PER_GROUP 32 MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.CONV_DIM 32
    MODEL.ROI_MASK_HEAD.CONV_DIM 32"""
CASCADE = """MODEL.ROI_HEADS.NAME DeformCascadeROIHeads
    MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True"""
DETECTRON2S_RESNET = "MODEL.RESNETS.DEPTH 50"  # which has no 14

MODELS = {
    "rfcn": ("R-FCN/rfcn_R_101_C5_voc", REDUCED),
    "rfcn_deformable": ("R-FCN/deformable_rfcn_R_101_C5_voc", REDUCED),
    "rfcn_soft_nms": ("R-FCN/deformable_rfcn_R_101_C5_coco_800_softnms", REDUCED),
    "faster": ("Faster-R-CNN/faster_rcnn_R_101_C5_voc", REDUCED),
    "faster_deformable": ("Faster-R-CNN/deformable_faster_rcnn_R_101_C5_voc", REDUCED),
    "fpn": ("FPN/fpn_R_101_coco", ""),
    "fpn_deformable": ("FPN/deformable_fpn_R_101_coco", ""),
    "fpn_soft_nms": ("FPN/deformable_fpn_R_101_coco", LINEAR),
    "mask_c4": ("Mask-RCNN/mask_rcnn_R_50_C4_2x", DETECTRON2S_RESNET),
    "mask_fpn": ("Mask-RCNN/mask_rcnn_R_50_FPN_2x", DETECTRON2S_RESNET),
    "mask_tensorpack": ("Mask-RCNN/mask_rcnn_R_50_FPN_2x_gn_tensorpack", GN),
    "dcnv2_plain": ("DCNv2/mask_rcnn_R_50_C5_16e", REDUCED),
    "dcnv2_c5": ("DCNv2/mask_rcnn_R_50_C5_16e_mdconv_c3c5_mdpool_mimic", REDUCED),
    "dcnv2_fpn": ("DCNv2/mask_rcnn_R_50_FPN_1x_mdconv_c3c5_mdpool", ""),
    "dcnv2_per_level": ("DCNv2/faster_rcnn_R_50_FPN_1x_mdpool_per_level", ""),
    "dynamic": ("Dynamic-RCNN/dynamic_rcnn_R_50_FPN_1x", DETECTRON2S_RESNET),
    "dynamic_deformable": ("Dynamic-RCNN/dynamic_rcnn_R_101_DCNv2_FPN_3x_multiscale", ""),
    "cascade": ("DCNv2/faster_rcnn_R_50_FPN_1x_mdconv_c3c5_mdpool", CASCADE),
    "cascade_soft_nms": (
        "DCNv2/faster_rcnn_R_50_FPN_1x_mdconv_c3c5_mdpool",
        f"{CASCADE} {GAUSSIAN}",
    ),
    "retinanet": (
        "Deformable/retinanet_R_50_FPN_1x_dconv_c3-c5",
        "MODEL.RETINANET.NUM_CLASSES 3 MODEL.RETINANET.SCORE_THRESH_TEST 0.001",
    ),
}
UNSCALED = ("rfcn",)  # tested without a wanted size, too
DEEPLAB = "MODEL.SEM_SEG_HEAD.CONVS_DIM 8 MODEL.SEM_SEG_HEAD.NUM_CLASSES 3"


def tracing_adapter():
    """detectron2's TracingAdapter, also where its package asks for Caffe2, which is no more."""
    try:
        from detectron2.export import TracingAdapter
    except ImportError:
        package = types.ModuleType("detectron2.export")
        package.__path__ = [str(Path(detectron2.__file__).parent / "export")]
        with mock.patch.dict(sys.modules, {package.__name__: package}):
            from detectron2.export.flatten import TracingAdapter
    return TracingAdapter


def make_model(path, *opts):
    """Random weights in all layers, also in those of offsets, and scores that are no ties."""
    torch.manual_seed(0)
    model = build_model(load(path, NARROW, *opts)).eval()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=(0.3 / p[0].numel()) ** 0.5)
        if "offset" in name:
            torch.nn.init.normal_(p, std=0.05)
    return model


def make_inputs(size, scaled):
    """An image, whose result is wanted at another size, whose sides have other factors."""
    torch.manual_seed(size[0])
    inputs = {"image": torch.randint(0, 256, (3, *size)).float()}
    if scaled:
        height, width = int(1.5 * size[0]), int(1.25 * size[1])
        inputs.update(height=torch.tensor(height), width=torch.tensor(width))
    return [inputs]


def trace(model, inputs, run=None):
    adapter = tracing_adapter()(model, inputs, run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what detectron2 does with numbers
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)

    def run_traced(inputs):
        with torch.no_grad():
            return adapter.outputs_schema(traced(*(x[key] for x in inputs for key in sorted(x))))[0]

    return run_traced


def fields(instances):
    return {k: getattr(v, "tensor", v) for k, v in instances.get_fields().items()}


@pytest.mark.parametrize("name", MODELS)
def test_detections(name):
    path, opts = MODELS[name]
    model = make_model(path, HEADS, opts)
    # Masks cannot be pasted in a traced model.
    pastes = hasattr(model, "roi_heads") and getattr(model.roi_heads, "mask_on", False)

    def run(model, inputs):
        return model.inference(inputs, do_postprocess=False) if pastes else model(inputs)

    for scaled in [False, True] if name in UNSCALED else [not pastes]:
        traced = trace(model, make_inputs(TRACED, scaled), run)
        for size in SIZES:
            inputs = make_inputs(size, scaled)
            with torch.no_grad():
                expected = run(model, inputs)[0]
            found = traced(inputs)
            if not pastes:
                expected, found = expected["instances"], found["instances"]
                height = inputs[0].get("height", torch.tensor(size[0]))
                assert found.image_size[0] == height
            expected, found = fields(expected), fields(found)
            assert len(expected["scores"]) >= 5
            assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("prefix", ["", "deformable_"])
def test_segmentation(prefix, scaled):
    model = make_model(f"DeepLab/{prefix}deeplab_R_101_voc", DEEPLAB)
    traced = trace(model, make_inputs(TRACED, scaled))
    for size in SIZES:
        inputs = make_inputs(size, scaled)
        with torch.no_grad():
            expected = model(inputs)[0]
        assert expected["labels"].shape == size and expected["sem_seg"].std(dim=(1, 2)).all()
        assert_close(traced(inputs), expected)


def test_windows_are_refused():
    windows = "TEST.WINDOW_SIZE [64,64] TEST.WINDOW_STRIDE [32,32]"
    model = make_model("DeepLab/deeplab_R_101_voc", DEEPLAB, windows)
    with pytest.raises(ValueError, match=r"TEST.WINDOW_SIZE is \[64, 64\]: .*WINDOW_STRIDE \[\]"):
        trace(model, make_inputs(TRACED, False))


def test_augmentation_is_refused():
    path, opts = MODELS["rfcn"]
    cfg = load(path, NARROW, HEADS, opts, "TEST.AUG.SCALES [[64,96]]")
    model = MultiScaleTTA(cfg, build_model(cfg).eval())
    inputs = make_inputs(TRACED, True)
    with pytest.raises(ValueError, match="TEST.AUG: .*Trace the model itself"):
        trace(model, inputs)
