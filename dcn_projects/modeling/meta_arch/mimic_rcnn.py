import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from dcn_projects.config import reads

__all__ = ["MimicRCNN", "crop_patches"]


def crop_patches(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """
    The image inside each box, scaled to a square, bilinearly and without rounding of the box. Pixel
    centres lie at halves; beyond the image its border is repeated.

    Args:
        image: (C, H, W)
        boxes: (R, 4), x0, y0, x1, y1 in pixels of `image`
        size: S
    Returns:
        Tensor: (R, C, S, S)
    """
    # As fractions of the image's sides. No affine_grid: autocast makes its product one of 16 bits.
    start, end = (boxes / boxes.new_tensor(image.shape[:0:-1]).repeat(2)).view(-1, 2, 2).unbind(1)
    centres = (torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 0.5) / size
    x, y = (start[..., None] + (end - start)[..., None] * centres).unbind(1)
    at = torch.stack((x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)), dim=3)
    image = image.expand(len(boxes), *image.shape)
    grid = (2 * at - 1).to(image.dtype)  # the image is the square [-1, 1]
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def check_mimic(cfg: CfgNode) -> None:
    """Raises ValueError, naming the key, if a config asks for what mimicking cannot do."""
    keys, heads = cfg.MODEL.MIMIC, cfg.MODEL.ROI_HEADS.NAME
    if not hasattr(ROI_HEADS_REGISTRY.get(heads), "box_features"):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {heads}: MimicRCNN needs DeformROIHeads, or others of this "
            "project with a box head"
        )
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals: MimicRCNN needs one with "
            "layers, such as RPN"
        )
    if keys.NUM_SAMPLES < 1:
        raise ValueError(f"MODEL.MIMIC.NUM_SAMPLES is {keys.NUM_SAMPLES}, expected 1 or more")
    if keys.REDUCTION not in ("sum_per_image", "mean"):
        raise ValueError(
            f"MODEL.MIMIC.REDUCTION is {keys.REDUCTION}, expected sum_per_image or mean"
        )


@META_ARCH_REGISTRY.register()
@reads("MODEL.MIMIC", checks=[check_mimic])
class MimicRCNN(GeneralizedRCNN):
    """
    Faster or Mask R-CNN that learns the features of an R-CNN (arXiv 1811.11168, Sec. 3.3). In
    training, patches of the image around some foreground RoIs go through the same backbone, RoI
    pooling and box head as the image; the features of a RoI learn to point in the direction of
    those of its patch, and a separate classifier reads the latter. At inference there are no
    patches: the model is then a GeneralizedRCNN.

    With f(b) and g(b) the features of a RoI b and of its patch, and a sum over the chosen RoIs,

        loss_mimic_cos = sum over b of 1 - f(b) . g(b) / (|f(b)| |g(b)|)

    Both losses reach backbone, RoI pooling with its offsets, and box head. The heads must be
    `DeformROIHeads`, or others with `CombinedROIHeads`; a cascade mimics with its first stage. The
    patches are a batch of their own, which does not matter to FrozenBN and GN, but does to BN.
    """

    training_only = ("mimic_score",)

    @configurable
    def __init__(
        self,
        *,
        num_samples: int,
        patch_size: int,
        cos_weight: float,
        cls_weight: float,
        min_box: float,
        detach_teacher: bool,
        reduction: str,
        **kwargs,
    ):
        """
        Args:
            num_samples: foreground RoIs drawn per image
            patch_size: side of a patch, in pixels
            cos_weight, cls_weight: weights of the two losses
            min_box: RoIs whose width or height is not above it, in pixels, are left out
            detach_teacher: the cosine sends no gradient through the patches
            reduction: of the cosine loss, "sum_per_image" or "mean"
        """
        super().__init__(**kwargs)
        self.num_samples, self.patch_size = num_samples, patch_size
        self.cos_weight, self.cls_weight = cos_weight, cls_weight
        self.min_box = min_box
        self.detach_teacher = detach_teacher
        self.reduction = reduction
        heads = self.roi_heads
        self.mimic_score = nn.Linear(heads.box_feature_shape.channels, heads.num_classes + 1)
        nn.init.normal_(self.mimic_score.weight, std=0.01)
        nn.init.zeros_(self.mimic_score.bias)

    @classmethod
    def from_config(cls, cfg):
        check_mimic(cfg)
        ret = super().from_config(cfg)
        _check_parts(cfg, ret["backbone"], ret["roi_heads"])
        keys = cfg.MODEL.MIMIC
        return {
            **ret,
            "num_samples": keys.NUM_SAMPLES,
            "patch_size": keys.PATCH_SIZE,
            "cos_weight": keys.COS_WEIGHT,
            "cls_weight": keys.CLS_WEIGHT,
            "min_box": keys.MIN_BOX,
            "detach_teacher": keys.DETACH_TEACHER,
            "reduction": keys.REDUCTION,
        }

    def forward(self, batched_inputs):
        """As in GeneralizedRCNN, in training with `loss_mimic_cos` and `loss_mimic_cls`."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(images, features, targets)
        sampled, detector_losses = self.roi_heads(images, features, proposals, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        mimic_losses = self.mimic_losses(images, features, sampled)
        return {**losses, **detector_losses, **mimic_losses}

    def mimic_losses(
        self, images: ImageList, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """
        Args:
            images: N images, as the backbone took them
            features: the maps that the backbone returned for them
            proposals: of each image, with `proposal_boxes` and `gt_classes`
        Returns:
            dict: "loss_mimic_cos" and "loss_mimic_cls". Without any foreground RoI both are 0, with
            zero gradients
        """
        chosen = [self.choose(p) for p in proposals]
        boxes = [p.proposal_boxes for p in chosen]
        classes = torch.cat([p.gt_classes for p in chosen])
        weight = 1.0
        if len(classes) == 0:
            # The first image as a whole, with a weight of 0, so that all layers run: SyncBN waits
            # for every process, and DistributedDataParallel for every gradient.
            height, width = images.image_sizes[0]
            boxes[0] = Boxes(boxes[0].tensor.new_tensor([[0, 0, width, height]]))
            classes, weight = classes.new_zeros(1), 0.0
        patches = torch.cat(
            [
                crop_patches(image, b.tensor, self.patch_size)
                for image, b in zip(images, boxes)  # an image without its padding
            ]
        )
        whole = patches.new_tensor([[0, 0, self.patch_size, self.patch_size]])
        student = self.roi_heads.box_features(features, boxes)
        teacher = self.roi_heads.box_features(self.backbone(patches), [Boxes(whole)] * len(patches))
        target = teacher.detach() if self.detach_teacher else teacher
        # In float32, as bfloat16 rounds a cosine of 0.999 to 1.
        distance = 1 - F.cosine_similarity(student.float(), target.float(), dim=1)
        cos = distance.mean() if self.reduction == "mean" else distance.sum() / len(images)
        cls = F.cross_entropy(self.mimic_score(teacher).float(), classes)
        return {
            "loss_mimic_cos": weight * self.cos_weight * cos,
            "loss_mimic_cls": weight * self.cls_weight * cls,
        }

    def choose(self, proposals: Instances) -> Instances:
        """`num_samples` foreground RoIs of an image, at random; all, where there are fewer."""
        boxes, classes = proposals.proposal_boxes, proposals.gt_classes
        foreground = (classes >= 0) & (classes < self.roi_heads.num_classes)
        rows = (foreground & boxes.nonempty(self.min_box)).nonzero()[:, 0]
        return proposals[rows[torch.randperm(len(rows), device=rows.device)[: self.num_samples]]]


def _check_parts(cfg: CfgNode, backbone: nn.Module, roi_heads: nn.Module) -> None:
    """Raises ValueError, naming the key, if the parts that were built do not fit mimicking."""
    if roi_heads.box_feature_shape.height is not None:
        raise ValueError("MODEL.ROI_BOX_HEAD.NUM_FC is 0: MimicRCNN needs 1 or more")
    size, divisor = cfg.MODEL.MIMIC.PATCH_SIZE, max(backbone.size_divisibility, 1)
    if size < 1 or size % divisor:
        raise ValueError(f"MODEL.MIMIC.PATCH_SIZE is {size}, expected a multiple of {divisor}")
