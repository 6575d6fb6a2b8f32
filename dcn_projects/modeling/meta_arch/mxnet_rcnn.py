import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList

__all__ = ["MXNetRCNN"]


@META_ARCH_REGISTRY.register()
class MXNetRCNN(GeneralizedRCNN):
    """
    GeneralizedRCNN on images padded as in the MXNet code of FPN: with black, before the mean is
    subtracted. detectron2 pads with the mean instead.
    """

    def preprocess_image(self, batched_inputs) -> ImageList:
        """As in GeneralizedRCNN: (N, C, H, W) with the sizes of the images."""
        images = super().preprocess_image(batched_inputs)
        rows, columns = (
            torch.arange(size, device=self.device) for size in images.tensor.shape[-2:]
        )
        inside = torch.stack(
            [(rows < height)[:, None] & (columns < width) for height, width in images.image_sizes]
        )
        black = -self.pixel_mean / self.pixel_std
        images.tensor = torch.where(inside[:, None], images.tensor, black)
        return images
