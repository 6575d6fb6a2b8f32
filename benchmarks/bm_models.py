"""
Inference of each deformable model beside its plain one, with random weights, on an image of noise:
the time of a whole model, from the image on the device to its results, and on a GPU the memory of
DeepLab. On the CPU memory differs more from run to run than between the models.
"""

import sys

import measure
import torch

from dcn_projects.engine import read_config
from dcn_projects.modeling import build_model

# The configs, plain and deformable.
PAIRS = {
    "R-FCN": ("R-FCN/rfcn_R_101_C5_voc", "R-FCN/deformable_rfcn_R_101_C5_voc"),
    "Faster R-CNN": (
        "Faster-R-CNN/faster_rcnn_R_101_C5_voc",
        "Faster-R-CNN/deformable_faster_rcnn_R_101_C5_voc",
    ),
    "FPN": ("FPN/fpn_R_101_coco", "FPN/deformable_fpn_R_101_coco"),
}
QUICK_PAIRS = {
    "R-FCN": ("R-FCN/deformable_rfcn_R_14_C5_digits", "R-FCN/deformable_rfcn_R_14_C5_digits"),
}
SEGMENTORS = {
    "DeepLab": (
        "DeepLab/deeplab_R_101_cityscapes",
        "DeepLab/deformable_deeplab_R_101_cityscapes",
    ),
}
QUICK_SEGMENTORS = {
    "DeepLab": ("DeepLab/deeplab_R_14_digits", "DeepLab/deformable_deeplab_R_14_digits"),
}
SEGMENTOR_SIZE = {"cpu": (512, 1024), "cuda": (1024, 2048)}
MEMORY_SIZE = (1024, 2048)
# Of deformable / plain.
MUST = {"R-FCN": {"cpu": 1.35, "cuda": 1.10}, "DeepLab": {"cpu": 1.35, "cuda": 1.05}}
MUST_MEMORY = 1.10


def inference(config: str, image: torch.Tensor, device: str) -> measure.Call:
    cfg = read_config(f"{config}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    model = build_model(cfg).eval()
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]

    def call():
        with torch.no_grad():
            return model(inputs)

    return call


def models_table(report, pairs: dict[str, tuple[str, str]], size: tuple[int, int], args):
    columns = ["model", "ms, plain", "ms, deformable", "deformable / plain", "must"]
    note = f"float32, one image of {size[0]} x {size[1]}, random weights."
    with report.table("Inference", columns, note) as add:
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        for name, configs in pairs.items():
            plain, deformable = (inference(c, image, args.device) for c in configs)
            times = measure.rounds(
                {"plain": plain, "deformable": deformable}, args, slow=["plain", "deformable"]
            )
            plain, deformable = times["plain"], times["deformable"]
            must = MUST.get(name, {}).get(args.device)
            row = [measure.ms(plain), measure.ms(deformable), measure.ratio(deformable, plain)]
            add(name, *row, must)


def peak_megabytes(config: str, image: torch.Tensor, args) -> float:
    call = inference(config, image, args.device)
    return measure.peak_allocated(lambda: call()[0].values(), args) / 2**20


def memory_table(report, pairs: dict[str, tuple[str, str]], size: tuple[int, int], args):
    columns = ["model", "MB, plain", "MB, deformable", "deformable / plain", "must"]
    note = f"Beside weights and image, of one image of {size[0]} x {size[1]}."
    with report.table("Peak memory of inference", columns, note) as add:
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        for name, configs in pairs.items():
            plain, deformable = (peak_megabytes(config, image, args) for config in configs)
            add(name, plain, deformable, deformable / plain, MUST_MEMORY)


def main() -> bool:
    args = measure.parse_args(__doc__)
    report = measure.Report("models", args)
    if args.quick:
        detectors, segmentors, sizes = QUICK_PAIRS, QUICK_SEGMENTORS, [(96, 128)] * 3
    else:
        detectors, segmentors = PAIRS, SEGMENTORS
        sizes = [(600, 1000), SEGMENTOR_SIZE[args.device], MEMORY_SIZE]
    models_table(report, detectors, sizes[0], args)
    models_table(report, segmentors, sizes[1], args)
    memory_table(report, segmentors, sizes[2], args)
    return report.failed


if __name__ == "__main__":
    sys.exit(main())
