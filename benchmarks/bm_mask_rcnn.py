"""
A training step of Deformable Mask R-CNN with this project's convolutions and with detectron2's own:
time and peak memory of forward and backward, same weights, same images of noise. detectron2's need
its compiled code and a GPU; without, its layers call torchvision's operator.
"""

import functools
import sys

import detectron2.layers.deform_conv as theirs
import measure
import torch
from torchvision.ops import deform_conv2d
from training_step import make_inputs, step

from dcn_projects.engine import read_config
from dcn_projects.modeling import build_model

CONFIGS = {
    "dconv": "DCNv2/mask_rcnn_R_50_FPN_1x_dconv_c3c5",
    "mdconv": "DCNv2/mask_rcnn_R_50_FPN_1x_mdconv_c3c5",
}
BACKBONES = {
    "ours": "build_deform_resnet_fpn_backbone",
    "detectron2": "build_resnet_fpn_backbone",
}
SIZE, QUICK_SIZE = {"cpu": (320, 448), "cuda": (800, 1088)}, (96, 128)
IMAGES, OBJECTS = 2, 10
# Of theirs / ours, on a GPU.
MUST_TIME, MUST_MEMORY = 1.3, 1.0
TOLERANCE = 1e-3


def has_their_operators(device: str) -> bool:
    """On the CPU they have no backward; a build without compiled code has none at all."""
    return device == "cuda" and "deform_conv_forward" in dir(getattr(theirs, "_C", None))


def torchvision_conv(x, offset, weight, stride, padding, dilation, groups, deformable_groups):
    return deform_conv2d(x, offset, weight, None, stride, padding, dilation)


def torchvision_modulated_conv(
    x, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups
):
    return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def make_model(config: str, backbone: str, device: str) -> torch.nn.Module:
    """With random weights, and offsets of some pixels as if it had learnt a while."""
    cfg = read_config(f"{config}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.MODEL.BACKBONE.NAME = backbone
    model = build_model(cfg).train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.state_dict().items():
        if "offset.bias" in name:
            parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
    return model


def check_same(models: dict[str, torch.nn.Module], inputs: list[dict]) -> None:
    """Raises AssertionError if the backbones compute different things."""
    with torch.no_grad():
        maps = [m.backbone(m.preprocess_image(inputs).tensor).values() for m in models.values()]
    features = [torch.cat([level.flatten() for level in levels]) for levels in maps]
    error = (features[0] - features[1]).norm() / features[0].norm()
    assert error < TOLERANCE, f"features differ by {error:.1e} of their norm"


def steps_table(report, size: tuple[int, int], args):
    operators = "its compiled" if has_their_operators(args.device) else "torchvision's"
    columns = ["network", "ms, ours", "ms, theirs", "theirs / ours", "must"]
    columns += ["MB, ours", "MB, theirs", "theirs / ours", "must"]
    note = (
        f"R-50 with FPN, float32, {IMAGES} images of {size[0]} x {size[1]}, {OBJECTS} objects in "
        f"each. Theirs: detectron2's layers with {operators} operators."
    )
    musts = (MUST_TIME, MUST_MEMORY) if args.device == "cuda" else (None, None)
    with report.table("Training step", columns, note) as add:
        inputs = make_inputs(size, IMAGES, OBJECTS)
        for name, config in CONFIGS.items():
            models = {key: make_model(config, b, args.device) for key, b in BACKBONES.items()}
            # Names of the offset layers differ; ours load those of detectron2.
            models["ours"].load_state_dict(models["detectron2"].state_dict())
            check_same(models, inputs)
            calls = {key: functools.partial(step, model, inputs) for key, model in models.items()}
            times = measure.rounds(calls, args, slow=["detectron2"])
            megabytes = {
                key: measure.peak_allocated(call, args) / 2**20 for key, call in calls.items()
            }
            add(
                name,
                measure.ms(times["ours"]),
                measure.ms(times["detectron2"]),
                measure.ratio(times["detectron2"], times["ours"]),
                musts[0],
                megabytes["ours"],
                megabytes["detectron2"],
                megabytes["detectron2"] / megabytes["ours"],
                musts[1],
            )


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("mask_rcnn", args)
    if not has_their_operators(args.device):
        theirs.deform_conv = torchvision_conv
        theirs.modulated_deform_conv = torchvision_modulated_conv
    steps_table(report, QUICK_SIZE if args.quick else SIZE[args.device], args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
