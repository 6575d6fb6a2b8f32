import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList

__all__ = ["MXNetFasterRCNN", "MXNetRCNN"]


@META_ARCH_REGISTRY.register()
class MXNetFasterRCNN(GeneralizedRCNN):
    """
    GeneralizedRCNN that tells its heads at which size results are wanted: `height` and `width` of
    the inputs, or the size of the image that the network sees. The last NMS of the MXNet code of
    Deformable ConvNets is on boxes in the original image, see `MXNetOutputLayers`.
    """

    def preprocess_image(self, batched_inputs) -> ImageList:
        """As in GeneralizedRCNN, with `output_sizes`: (height, width) of the results of each."""
        images = super().preprocess_image(batched_inputs)
        images.output_sizes = [
            (x.get("height", height), x.get("width", width))
            for x, (height, width) in zip(batched_inputs, images.image_sizes)
        ]
        return images


@META_ARCH_REGISTRY.register()
class MXNetRCNN(MXNetFasterRCNN):
    """
    MXNetFasterRCNN on images padded as in the MXNet code of FPN: with black, before the mean is
    subtracted. detectron2 pads with the mean instead.
    """

    def preprocess_image(self, batched_inputs) -> ImageList:
        """As in MXNetFasterRCNN: (N, C, H, W) with the sizes of the images."""
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
