"""
Letters: N images, K classes, H x W pixels of an image, h x w cells of a feature map, s its stride.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from dcn_projects.config import reads

__all__ = ["DeepLab", "DeepLabHead", "upsample_bilinear", "window_options"]


def upsample_bilinear(x: Tensor, stride: int) -> Tensor:
    """
    The fixed bilinear deconvolution of the original (kernel 2s x 2s, stride s) without the first
    s / 2 rows and columns, so that it begins where the image does. Along each side, with the
    centres of pixel p and cell q in units of cells,

        out(p) = sum over q of x(q) * max(0, 1 - |(p + 1/2) / s - (q + 1/2)|)

    Beyond the map there are zeros: towards the border all classes fade alike.

    The result is never smaller than the image, whose sides the stages of the backbone rounded up.
    A deconvolution padded by s / 2 would be, by a row or two, at some sizes.

    Args:
        x: (N, K, h, w), even stride
    Returns:
        Tensor: (N, K, s * h + s / 2, s * w + s / 2)
    """
    height, width = (stride * n + stride // 2 for n in x.shape[-2:])
    # Interpolation has the same weights, and a ring of zeros stands for what is beyond the map: no
    # kernel of (2s)^2 numbers per class is needed.
    ringed = F.pad(x, (1, 1, 1, 1))
    x = F.interpolate(ringed, scale_factor=stride, mode="bilinear", align_corners=False)
    return x[:, :, stride : stride + height, stride : stride + width]


@SEM_SEG_HEADS_REGISTRY.register()
class DeepLabHead(nn.Module):
    """
    The head of DeepLab in the MXNet code of Deformable ConvNets (arXiv 1703.06211, Sec. 4.1): two
    1x1 convolutions, and bilinear upsampling to the image, on which the loss is taken. Unlike the
    DeepLab of arXiv 1606.00915 it has no atrous pyramid and no CRF.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        input_shape: ShapeSpec,
        conv_dim: int,
        num_classes: int,
        ignore_value: int,
    ):
        """
        Args:
            in_feature: name of the feature map that is read
            input_shape: its channels and stride
            conv_dim: channels between the two convolutions
            num_classes: K, with a background where there is one
            ignore_value: label of pixels that are not learnt
        """
        super().__init__()
        self.in_feature, self.stride = in_feature, input_shape.stride
        self.ignore_value = ignore_value
        self.fc6 = Conv2d(input_shape.channels, conv_dim, kernel_size=1)
        self.score = Conv2d(conv_dim, num_classes, kernel_size=1)
        for layer in (self.fc6, self.score):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        keys = cfg.MODEL.SEM_SEG_HEAD
        if len(keys.IN_FEATURES) != 1:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(keys.IN_FEATURES)}, but DeepLabHead "
                'reads one feature map, such as ["res5"]'
            )
        (feature,) = keys.IN_FEATURES
        return {
            "in_feature": feature,
            "input_shape": input_shape[feature],
            "conv_dim": keys.CONVS_DIM,
            "num_classes": keys.NUM_CLASSES,
            "ignore_value": keys.IGNORE_VALUE,
        }

    def forward(self, features: dict[str, Tensor], targets: Tensor | None = None):
        """
        Args:
            features: maps of the backbone, (N, C, h, w) each
            targets: (N, H, W) classes, int64, in training
        Returns:
            in training None and a dict of losses; else logits, (N, K, at least H, at least W), of
            which the image is the upper left corner, and {}
        """
        x = self.score(F.relu_(self.fc6(features[self.in_feature])))
        logits = upsample_bilinear(x.float(), self.stride)
        if not self.training:
            return logits, {}
        height, width = targets.shape[-2:]
        return None, {"loss_sem_seg": self.loss(logits[:, :, :height, :width], targets)}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """
        Cross-entropy, the mean over the pixels of an image that are not ignored, and over images:
        each counts the same, as on a GPU of its own in the original.

        Args:
            logits: (N, K, H, W)
            targets: (N, H, W)
        """
        pixels = F.cross_entropy(logits, targets, ignore_index=self.ignore_value, reduction="none")
        counts = (targets != self.ignore_value).sum(dim=(1, 2)).clamp(min=1)
        return (pixels.sum(dim=(1, 2)) / counts).mean()


def window_options(cfg) -> dict:
    """
    Returns:
        dict: `window_size` and `window_stride`, (down, right) in pixels, or None
    Raises:
        ValueError: naming the key whose value cannot be used
    """
    size, stride = list(cfg.TEST.WINDOW_SIZE), list(cfg.TEST.WINDOW_STRIDE)
    if not size and not stride:
        return {"window_size": None, "window_stride": None}
    if len(size) != 2 or len(stride) != 2 or not all(0 < b <= a for a, b in zip(size, stride)):
        raise ValueError(
            "TEST.WINDOW_SIZE and TEST.WINDOW_STRIDE must be [height, width] and [down, right] "
            f"with steps from 1 to the size, or both []; got {size} and {stride}"
        )
    return {"window_size": tuple(size), "window_stride": tuple(stride)}


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where the windows begin that cover `length` pixels. The last one ends with them."""
    last = max(length - size, 0)
    return [*range(0, last, stride), last]


@META_ARCH_REGISTRY.register()
@reads("TEST.WINDOW_SIZE", "TEST.WINDOW_STRIDE", checks=[window_options])
class DeepLab(SemanticSegmentor):
    """
    SemanticSegmentor, with any head. It tests one image after the other, so that no image is padded
    to the size of another. With TEST.WINDOW_SIZE it tests on windows that move over the image.
    """

    @configurable
    def __init__(
        self,
        *,
        window_size: tuple[int, int] | None,
        window_stride: tuple[int, int] | None,
        **kwargs,
    ):
        """
        Args:
            window_size: height and width in pixels of the windows; None is the whole image
            window_stride: steps between them, down and right
        """
        super().__init__(**kwargs)
        self.window_size, self.window_stride = window_size, window_stride

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), **window_options(cfg)}

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as in SemanticSegmentor
        Returns:
            in training a dict of losses. Else per image a dict: "sem_seg", logits of the size
            that `height` and `width` ask for, (K, height, width), and "labels", the class of every
            pixel of the image that the network saw, (H, W), int64. The originals evaluate the
            latter.
        """
        if self.training:
            return super().forward(batched_inputs)
        return [self.inference(inputs) for inputs in batched_inputs]

    def inference(self, inputs: dict) -> dict[str, Tensor]:
        """One image, as in `forward`."""
        image = (inputs["image"].to(self.device) - self.pixel_mean) / self.pixel_std
        logits = self.window_logits(image) if self.window_size else self.logits(image)
        size = image.shape[-2:]
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        return {
            "sem_seg": sem_seg_postprocess(logits, size, height, width),
            "labels": logits.argmax(dim=0),
        }

    def logits(self, image: Tensor) -> Tensor:
        """(C, H, W), normalised -> (K, H, W)."""
        images = ImageList.from_tensors([image], self.backbone.size_divisibility)
        logits, _ = self.sem_seg_head(self.backbone(images.tensor))
        return logits[0, :, : image.shape[1], : image.shape[2]]

    def window_logits(self, image: Tensor) -> Tensor:
        """As `logits`, of the windows; where they overlap, the mean. Not in a traced model."""
        if torch.jit.is_tracing():
            raise ValueError(
                f"TEST.WINDOW_SIZE is {list(self.window_size)}: the number of windows depends on "
                "the size of an image, so a trace is right for one size only. Trace the model with "
                "TEST.WINDOW_SIZE [] and TEST.WINDOW_STRIDE []"
            )
        total, counts = None, image.new_zeros(image.shape[1:])
        (height, width), (down, right) = self.window_size, self.window_stride
        for y in window_starts(image.shape[1], height, down):
            for x in window_starts(image.shape[2], width, right):
                rows, columns = slice(y, y + height), slice(x, x + width)
                logits = self.logits(image[:, rows, columns])
                if total is None:
                    total = logits.new_zeros(len(logits), *image.shape[1:])
                total[:, rows, columns] += logits
                counts[rows, columns] += 1
        return total / counts
