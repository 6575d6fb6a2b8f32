import torch
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator

__all__ = ["MXNetAnchorGenerator"]

_BASE_SIZE = 16  # side of the box whose aspect ratio is changed and rounded before it is scaled


@ANCHOR_GENERATOR_REGISTRY.register()
class MXNetAnchorGenerator(DefaultAnchorGenerator):
    """
    Anchors of py-faster-rcnn and the MXNet code of Deformable ConvNets: a 16 pixel box takes each
    aspect ratio with whole-numbered sides (23x12, 16x16, 11x22) and is then scaled. They are
    ordered by ratio first. Use MODEL.ANCHOR_GENERATOR.OFFSET 0.5, which centres the anchors of
    cell (0, 0) of a stride 16 map on (8, 8), in detectron2's box coordinates.
    """

    def generate_cell_anchors(
        self, sizes=(64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)
    ) -> torch.Tensor:
        """
        Args:
            sizes: side of the square anchor of each scale, in pixels
            aspect_ratios: height / width
        Returns:
            Tensor: (ratios * sizes, 4), x0, y0, x1, y1 around the origin; float32
        """
        anchors = []
        for ratio in aspect_ratios:
            width = round((_BASE_SIZE**2 / ratio) ** 0.5)
            height = round(width * ratio)
            for size in sizes:
                x, y = 0.5 * width * size / _BASE_SIZE, 0.5 * height * size / _BASE_SIZE
                anchors.append([-x, -y, x, y])
        return torch.tensor(anchors)
