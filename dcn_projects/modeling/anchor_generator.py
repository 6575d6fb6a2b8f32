import torch
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)

__all__ = ["MXNetAnchorGenerator", "PyFasterRCNNAnchorGenerator"]


@ANCHOR_GENERATOR_REGISTRY.register()
class PyFasterRCNNAnchorGenerator(DefaultAnchorGenerator):
    """
    Anchors of py-faster-rcnn, and also of the MXNet code of Deformable ConvNets, maskrcnn-benchmark
    and older versions of tensorpack. A box of the size of a cell takes each aspect ratio with sides
    that are whole numbers (23x12, 16x16, 11x22 at stride 16), and is then scaled. They are ordered
    by ratio first. Use MODEL.ANCHOR_GENERATOR.OFFSET 0.5, which centres the anchors of cell (0, 0)
    of a stride 16 map on (8, 8), in detectron2's box coordinates.
    """

    def _calculate_anchors(self, sizes, aspect_ratios):
        levels = zip(sizes, aspect_ratios, self.strides)
        return BufferList([self.generate_cell_anchors(*level) for level in levels])

    def generate_cell_anchors(self, sizes, aspect_ratios, stride: int) -> torch.Tensor:
        """
        Args:
            sizes: side of the square anchor of each scale, in pixels
            aspect_ratios: height / width
            stride: of the feature map, in pixels
        Returns:
            Tensor: (ratios * sizes, 4), x0, y0, x1, y1 around the origin; float32
        """
        anchors = []
        for ratio in aspect_ratios:
            width = round((stride**2 / ratio) ** 0.5)
            height = round(width * ratio)
            for size in sizes:
                x, y = 0.5 * width * size / stride, 0.5 * height * size / stride
                anchors.append([-x, -y, x, y])
        return torch.tensor(anchors)


@ANCHOR_GENERATOR_REGISTRY.register()
class MXNetAnchorGenerator(PyFasterRCNNAnchorGenerator):
    """The older name of PyFasterRCNNAnchorGenerator, in configs of 0.1."""
