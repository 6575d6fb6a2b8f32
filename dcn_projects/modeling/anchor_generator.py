import torch
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)
from detectron2.structures import Boxes

__all__ = [
    "MXNetAnchorGenerator",
    "PyFasterRCNNAnchorGenerator",
    "TorchvisionAnchorGenerator",
]


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


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(PyFasterRCNNAnchorGenerator):
    """
    Anchors of torchvision: those of detectron2, with corners that are rounded to whole pixels
    (46x22, 32x32 and 22x46 for size 32), ordered by ratio first. The distance of the cells is the
    size of the padded image over the number of cells, rounded down: not 64 but 61 pixels where 800
    pixels have 13 cells of P6. Its models have MODEL.ANCHOR_GENERATOR.OFFSET 0.
    """

    def generate_cell_anchors(self, sizes, aspect_ratios, stride: int) -> torch.Tensor:
        """As `PyFasterRCNNAnchorGenerator`, whatever the stride."""
        roots = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
        sizes = torch.tensor(sizes, dtype=torch.float32)
        x, y = (0.5 * torch.outer(part, sizes).flatten() for part in (1 / roots, roots))
        return torch.stack((-x, -y, x, y), dim=1).round()

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """
        Args:
            features: (N, C, H, W) of each level; the stride of the first divides the padded image
        Returns:
            list[Boxes]: (H * W * A, 4) of each level
        """
        size = [cells * self.strides[0] for cells in features[0].shape[-2:]]
        anchors = []
        for feature, cell_anchors in zip(features, self.cell_anchors):
            y, x = (
                torch.arange(cells, device=feature.device) * (pixels // cells)
                for cells, pixels in zip(feature.shape[-2:], size)
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            anchors.append(Boxes((shifts + cell_anchors).reshape(-1, 4)))
        return anchors
