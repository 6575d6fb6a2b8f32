import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads, build_box_head
from detectron2.structures import Boxes
from torch import Tensor, nn

from dcn_projects.config import checks_of, reads

from ..dynamic_rcnn import DynamicTraining, warn_of_unused_keys
from ..poolers import build_roi_pooler
from .fast_rcnn import BoxOutputLayers

__all__ = ["CombinedROIHeads", "DeformROIHeads", "DynamicROIHeads", "OHEMROIHeads"]


def check_box_head(cfg: CfgNode) -> None:
    """Raises ValueError if a config names no box head, as those of models on res4 do."""
    if not cfg.MODEL.ROI_BOX_HEAD.NAME:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.NAME is empty: {cfg.MODEL.ROI_HEADS.NAME} needs a box head such "
            "as FastRCNNConvFCHead. Models on res4 (Res5ROIHeads) have none"
        )


@reads(
    *BoxOutputLayers.config_keys,
    *DynamicTraining.config_keys,
    "MODEL.ROI_BOX_HEAD.REDUCED_DIM",
    *(
        f"MODEL.{head}.POOLER_{key}"
        for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD")
        for key in ("TYPE", "GAMMA", "FC_DIM", "SHARE_LEVELS")
    ),
    checks=[*checks_of(BoxOutputLayers), check_box_head],
)
class CombinedROIHeads:
    """
    The parts that this project adds to detectron2's ROI heads. A class of heads inherits from this
    class first, and then from detectron2's StandardROIHeads or CascadeROIHeads. Each part is
    switched on by its keys, alone or with others:

        ROI_BOX_HEAD.POOLER_TYPE, ROI_MASK_HEAD.POOLER_TYPE   deformable RoI pooling
        ROI_BOX_HEAD.REDUCED_DIM                              a 1x1 convolution before it
        ROI_BOX_HEAD.OHEM_NUM, ROI_HEADS.NMS_TYPE             hard examples and soft-NMS
        DYNAMIC_RCNN.ENABLED                                  threshold and loss that move
        META_ARCHITECTURE MimicRCNN                           mimicking of `box_features`
    """

    # Of the box branch; each stage of a cascade has its own.
    output_layers = BoxOutputLayers
    # Whether the heads are dynamic without DYNAMIC_RCNN.ENABLED.
    always_dynamic = False
    # Whether POOLER_TYPE "ROIPool" rounds as the original does. If not, it is detectron2's, which
    # counts the pixel beyond the far corner of a RoI as a part of the RoI.
    rounds_as_original = False

    @configurable
    def __init__(
        self,
        *,
        conv_new: nn.Module | None = None,
        dynamic: DynamicTraining | None = None,
        **kwargs,
    ):
        """
        Args:
            conv_new: convolution of each feature map before it is pooled; None has none
            dynamic: what moves in training, which also gives the heads their matchers; None leaves
                threshold and loss as they are
            others: as in detectron2's heads
        """
        super().__init__(**kwargs)
        self.conv_new = conv_new
        self.dynamic = dynamic

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        check_box_head(cfg)
        ret = super().from_config(cfg, input_shape)
        if cls.always_dynamic or cfg.MODEL.DYNAMIC_RCNN.ENABLED:
            ret.update(cls._init_dynamic(cfg))
        else:
            warn_of_unused_keys(cfg)
        return ret

    @classmethod
    def _init_box_pooler(cls, cfg, input_shape) -> tuple[dict, ShapeSpec]:
        """Arguments of the class for all before the box head, and the shape that the head reads."""
        shapes = _narrowed_shapes(cfg, input_shape)
        features, keys = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        ret = {"box_in_features": features, "conv_new": _build_conv_new(cfg, input_shape)}
        side, of_features = keys.POOLER_RESOLUTION, [shapes[f] for f in features]
        if keys.POOLER_TYPE == "ROIPool" and not cls.rounds_as_original:
            scales = [1.0 / shape.stride for shape in of_features]
            pooler = ROIPooler(side, scales, keys.POOLER_SAMPLING_RATIO, "ROIPool")
        else:
            pooler = build_roi_pooler(cfg, "ROI_BOX_HEAD", of_features)
        pooled = ShapeSpec(channels=of_features[0].channels, height=side, width=side)
        return {**ret, "box_pooler": pooler}, pooled

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        if not cfg.MODEL.MASK_ON:
            return {}
        shapes = _narrowed_shapes(cfg, input_shape)
        cfg_of_base, pooler = cls._replace_pooler(cfg, "ROI_MASK_HEAD", shapes)
        ret = super()._init_mask_head(cfg_of_base, shapes)
        if pooler is not None:
            ret["mask_pooler"] = pooler
        return ret

    @classmethod
    def _replace_pooler(
        cls, cfg: CfgNode, head: str, shapes: dict[str, ShapeSpec]
    ) -> tuple[CfgNode, ROIPooler | None]:
        """
        The pooler of "ROI_BOX_HEAD" or "ROI_MASK_HEAD", or None where it is the one that the base
        class builds; and the config for the latter, with a POOLER_TYPE that it knows.
        """
        kind = cfg.MODEL[head].POOLER_TYPE
        # A mask head of detectron2 that pools for itself, or pooling for rotated boxes.
        if not kind or kind == "ROIAlignRotated":
            return cfg, None
        features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler = build_roi_pooler(cfg, head, [shapes[f] for f in features])
        if type(pooler) is ROIPooler or (kind == "ROIPool" and not cls.rounds_as_original):
            return cfg, None
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL[head].POOLER_TYPE = "ROIAlignV2"
        return cfg, pooler

    def forward(self, images, features, proposals, targets=None):
        """As in detectron2's heads."""
        if not self.training or self.dynamic is None:
            return super().forward(images, features, proposals, targets)
        self.dynamic.begin_stage(
            0,
            proposals,
            targets,
            _first_stage(self.box_predictor),
            append_gt=self.proposal_append_gt,
        )
        result = super().forward(images, features, proposals, targets)
        self.dynamic.end_iteration()
        return result

    def box_features(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """
        Args:
            features: maps of the backbone
            boxes: of each image, in input pixels
        Returns:
            Tensor: (R, D), output of the box head, in a cascade that of the first stage; boxes of
            the first image first
        """
        features = self._narrow(features)
        maps = [features[f] for f in self.box_in_features]
        return _first_stage(self.box_head)(self.box_pooler(maps, boxes))

    @property
    def box_feature_shape(self) -> ShapeSpec:
        """Of one row of `box_features`: without height and width, where it is a vector."""
        return _first_stage(self.box_head).output_shape

    def _narrow(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.conv_new is None:
            return features
        return {f: F.relu_(self.conv_new(features[f])) for f in self.box_in_features}

    def _forward_mask(self, features, instances):
        return super()._forward_mask(
            self._narrow(features) if self.mask_on else features, instances
        )


@ROI_HEADS_REGISTRY.register()
class OHEMROIHeads(CombinedROIHeads, StandardROIHeads):
    """
    detectron2's heads of Faster and Mask R-CNN, with all of `CombinedROIHeads`. Put before other
    heads with one box predictor, it adds the same to them:
    `class MyOHEMROIHeads(OHEMROIHeads, MyROIHeads)`. Hard examples are mined in the box branch;
    branches for masks and keypoints still learn from all foreground RoIs.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        shapes = _narrowed_shapes(cfg, input_shape)
        conv_new = _build_conv_new(cfg, input_shape)
        cfg_of_base, pooler = cls._replace_pooler(cfg, "ROI_BOX_HEAD", shapes)
        ret = super()._init_box_head(cfg_of_base, shapes)
        ret["box_predictor"] = cls.output_layers(cfg, ret["box_head"].output_shape)
        if pooler is not None:
            ret["box_pooler"] = pooler
        return {**ret, "conv_new": conv_new}

    @classmethod
    def _init_dynamic(cls, cfg):
        labels = list(cfg.MODEL.ROI_HEADS.IOU_LABELS)
        if labels != [0, 1]:
            raise ValueError(
                f"MODEL.ROI_HEADS.IOU_LABELS is {labels}, with MODEL.ROI_HEADS.IOU_THRESHOLDS "
                f"{list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)}: Dynamic R-CNN has one threshold "
                "between background and foreground. Use [0, 1], and one IoU"
            )
        keys = cfg.MODEL.DYNAMIC_RCNN
        key = "DYNAMIC_RCNN.WARMUP_IOU" if keys.DLA else "ROI_HEADS.IOU_THRESHOLDS"
        thresholds = [keys.WARMUP_IOU] if keys.DLA else list(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)
        dynamic = DynamicTraining.from_config(cfg, thresholds, key)
        return {"dynamic": dynamic, "proposal_matcher": dynamic.matchers[0]}

    def _forward_box(self, features, proposals):
        """
        As in StandardROIHeads. Hard examples are mined in two passes (arXiv 1604.03540, Sec. 4):
        all RoIs without gradients, then those that were hardest. That is cheaper than one pass,
        and the same unless the box head has batch normalisation.
        """
        features = self._narrow(features)
        # With predicted boxes as proposals, other branches need the predictions of all RoIs.
        outputs = self.box_predictor
        hardest_only = outputs.ohem_num > 0 and outputs.ohem_box_loss
        if self.training and hardest_only and not self.train_on_pred_boxes:
            with torch.no_grad():
                maps = [features[f] for f in self.box_in_features]
                pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
                predictions = outputs(self.box_head(pooled))
            # Under autocast an older PyTorch (2.4) goes on with the weights that were cast here,
            # which have no gradient.
            torch.clear_autocast_cache()
            _, proposals = outputs.keep_hardest(predictions, proposals)
        return super()._forward_box(features, proposals)


@ROI_HEADS_REGISTRY.register()
class DeformROIHeads(OHEMROIHeads):
    """
    The heads of Faster and Mask R-CNN in this project, with all of `CombinedROIHeads`. In DCNv2
    (arXiv 1811.11168, Sec. 3) the RoI pooling of the box and of the mask head are both modulated
    deformable. They read a feature pyramid, or the dilated res5 through a 1x1 convolution.
    """

    rounds_as_original = True

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        # The base class would also draw the weights of a predictor of detectron2, which these heads
        # replace. Without it, a seed gives the same network as in version 0.1.
        ret, pooled = cls._init_box_pooler(cfg, input_shape)
        ret["box_head"] = build_box_head(cfg, pooled)
        ret["box_predictor"] = cls.output_layers(cfg, ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class DynamicROIHeads(OHEMROIHeads):
    """
    Heads of Dynamic R-CNN (arXiv 2004.06002), with all else of `CombinedROIHeads`. In training they
    have a `DynamicTraining`. Inference is that of heads that are not dynamic.
    """

    always_dynamic = True


def _narrowed_shapes(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Shapes of the feature maps, those that are pooled after the 1x1 convolution."""
    features, dim = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM
    channels = [input_shape[f].channels for f in features]
    if len(set(channels)) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES {features} differ in their channels: {channels}"
        )
    if dim < 0:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.REDUCED_DIM is {dim}, expected channels, or 0 for no convolution"
        )
    narrowed = {
        f: ShapeSpec(channels=dim or channels[0], stride=input_shape[f].stride) for f in features
    }
    return {**input_shape, **narrowed}


def _build_conv_new(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    dim = cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM
    if dim == 0:
        return None
    conv_new = Conv2d(input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels, dim, kernel_size=1)
    nn.init.normal_(conv_new.weight, std=0.01)
    nn.init.zeros_(conv_new.bias)
    return conv_new


def _first_stage(part: nn.Module) -> nn.Module:
    """Of the heads, or outputs, of all stages of a cascade; else the part itself."""
    return part[0] if isinstance(part, nn.ModuleList) else part
