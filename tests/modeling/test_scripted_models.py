"""
Models with deformable convolutions through detectron2's export to TorchScript. It works once for a
model, whose modules it exchanges: each test has a copy.
"""

import copy
import io

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.testing import assert_close

from tests.modeling.narrow_models import NARROW, load

export = pytest.importorskip(
    "detectron2.export", reason="this detectron2 needs caffe2", exc_type=ImportError
)

# Of torch 2.9 and later.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")

FIELDS = {
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
}
RES5 = "MODEL.RESNETS.DEFORM_ON_PER_STAGE [False,False,False,True]"
FPN = "MODEL.FPN.OUT_CHANNELS 16 TEST.DETECTIONS_PER_IMAGE 20"
RCNN = """MODEL.RPN.POST_NMS_TOPK_TEST 20 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0
    MODEL.ROI_HEADS.NUM_CLASSES 3 MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8"""


def make_model(*arguments):
    torch.manual_seed(0)
    model = build_model(load(*arguments)).eval()
    offsets = [p for name, p in model.named_parameters() if "conv_offset" in name]
    for parameter in offsets:
        nn.init.normal_(parameter, std=0.05)
    assert offsets
    return model


@pytest.fixture(scope="module")
def mask_rcnn():
    path = "Deformable/mask_rcnn_R_50_FPN_1x_mdconv_everywhere"
    swap = "MODEL.DEFORMABLE.META_ARCHITECTURE GeneralizedRCNN"
    swap += " MODEL.META_ARCHITECTURE build_deformable_model"
    return make_model(path, NARROW, RCNN, FPN, swap)


@pytest.fixture(scope="module")
def retinanet():
    path = "Deformable/retinanet_R_50_FPN_1x_dconv_c3-c5"
    numbers = "MODEL.RETINANET.NUM_CLASSES 3 MODEL.RETINANET.SCORE_THRESH_TEST 0.0"
    modulated = "MODEL.RESNETS.DEFORM_MODULATED True"
    return make_model(path, NARROW, FPN, RES5, modulated, numbers)


def saved_and_loaded(script):
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


IMAGES = [torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255
          for size in [(64, 96), (90, 70)]]  # fmt: skip


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet"])
def test_script_of_a_model(request, name):
    """What it finds, before it is scaled to the size of the image."""
    model = request.getfixturevalue(name)
    script = export.scripting_with_instances(copy.deepcopy(model), FIELDS)
    for image in IMAGES:
        inputs = [{"image": image}]
        with torch.no_grad():
            if name == "mask_rcnn":
                (expected,) = model.inference(inputs, do_postprocess=False)
                (found,) = script.inference(inputs, do_postprocess=False)
            else:
                expected = model(inputs)[0]["instances"]
                (found,) = script(inputs)
                found.pred_boxes.clip(found.image_size)  # a part of the scaling
        assert len(expected) == 20
        assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
        for field in {"scores", "pred_classes", "pred_masks"} & expected.get_fields().keys():
            assert_close(getattr(found, field), getattr(expected, field))


class Detections(nn.Module):
    """What can be saved: a script that returns Instances cannot."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        found = self.model.inference(inputs, do_postprocess=False)
        return [instances.get_fields() for instances in found]


def test_saved_script(mask_rcnn, tmp_path):
    model = Detections(copy.deepcopy(mask_rcnn)).eval()
    script = export.scripting_with_instances(model, FIELDS)
    export.dump_torchscript_IR(script, str(tmp_path))
    assert "dcn_projects::deform_conv" in (tmp_path / "model_ts_IR_inlined.txt").read_text()
    loaded, inputs = saved_and_loaded(script), ({"image": IMAGES[0]},)
    with torch.no_grad():
        expected = mask_rcnn.inference(inputs, do_postprocess=False)[0].get_fields()
        found = loaded(inputs)[0]
    assert_close(found["pred_boxes"], expected["pred_boxes"].tensor)
    assert_close(found["scores"], expected["scores"])


def test_traced_model(retinanet):
    inputs = [{"image": IMAGES[0]}]
    adapter = export.TracingAdapter(retinanet, inputs).eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        found = adapter.outputs_schema(traced(IMAGES[0]))[0]["instances"]
        expected = retinanet(inputs)[0]["instances"]
    assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert_close(found.scores, expected.scores)
