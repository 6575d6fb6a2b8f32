"""Whose model a file of PyTorch has, as far as its names tell."""

from collections.abc import Iterable

__all__ = [
    "DETECTRON2",
    "MASKRCNN_BENCHMARK",
    "MMDETECTION",
    "TORCHVISION",
    "TORCHVISION_CLASSIFIER",
    "origin_of",
]

MASKRCNN_BENCHMARK = "maskrcnn-benchmark"
TORCHVISION = "torchvision"
TORCHVISION_CLASSIFIER = "torchvision classifier"
MMDETECTION = "mmdetection"
DETECTRON2 = "detectron2"

_OF_DETECTRON2 = (
    *("backbone.bottom_up.", "backbone.fpn_", "backbone.stem.", "backbone.res"),
    *("proposal_generator.", "sem_seg_head.", "stem.conv1."),
)
_OF_MMDETECTION = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.")


def origin_of(names: Iterable[str]) -> str:
    """
    Args:
        names: of parameters and buffers, without what wraps them
    Returns:
        str: one of the origins above; "" if it is another one
    """
    names = set(names)

    def begin(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    if begin("backbone.body."):
        of_torchvision = begin("backbone.body.conv1.", "backbone.fpn.inner_blocks.")
        return TORCHVISION if of_torchvision else MASKRCNN_BENCHMARK
    if begin("backbone.layer1.") and begin(*_OF_MMDETECTION):
        return MMDETECTION
    if begin("layer1.0.conv1.") and "conv1.weight" in names:
        return TORCHVISION_CLASSIFIER
    return DETECTRON2 if begin(*_OF_DETECTRON2) else ""
