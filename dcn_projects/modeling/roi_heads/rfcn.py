"""
R-FCN: score maps over the whole image, and RoIs that pool them and vote. Letters: N images, R RoIs,
K classes without the background, k x k bins.
"""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from dcn_projects.config import checks_of, reads
from dcn_projects.layers import DeformROIPool, PSROIPool

from .mxnet_heads import MXNetOutputLayers, tell_scale

__all__ = ["DeformPSROIPool", "RFCNROIHeads", "RFCNScoreMaps"]


class RFCNScoreMaps(nn.Module):
    """
    The convolutions of R-FCN over the whole image (arXiv 1605.06409, Sec. 2): one that narrows
    the features, and one per map. A map holds k x k channels per class or coordinate, in the order
    (class, bin row, bin column); the background is the last class. With `deformable` there are
    also offset maps (arXiv 1703.06211, Sec. 2.2), of 2 k x k channels (x, y) for every class, and
    of one pair for the box. All classes share one box.
    """

    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        reduced_dim: int,
        num_classes: int,
        group_size: int,
        deformable: bool,
    ):
        """
        Args:
            in_feature: name of the feature map that is read
            in_channels: its channels
            reduced_dim: channels of `conv_new`
            num_classes: K
            group_size: k
            deformable: make offset maps
        """
        super().__init__()
        self.in_feature = in_feature
        bins = group_size**2
        self.conv_new = Conv2d(in_channels, reduced_dim, kernel_size=1)
        self.rfcn_cls = Conv2d(reduced_dim, bins * (num_classes + 1), kernel_size=1)
        self.rfcn_bbox = Conv2d(reduced_dim, bins * 4, kernel_size=1)
        for layer in (self.conv_new, self.rfcn_cls, self.rfcn_bbox):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.deformable = deformable
        if deformable:
            self.rfcn_cls_offset = Conv2d(reduced_dim, 2 * bins * (num_classes + 1), kernel_size=1)
            self.rfcn_bbox_offset = Conv2d(reduced_dim, 2 * bins, kernel_size=1)
            for layer in (self.rfcn_cls_offset, self.rfcn_bbox_offset):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            features: maps of the backbone, (N, C, H, W) each
        Returns:
            dict: "cls" (N, k*k*(K + 1), H, W), "bbox" (N, k*k*4, H, W), and with `deformable`
            "cls_offset" (N, 2*k*k*(K + 1), H, W) and "bbox_offset" (N, 2*k*k, H, W)
        """
        x = F.relu_(self.conv_new(features[self.in_feature]))
        maps = {"cls": self.rfcn_cls(x), "bbox": self.rfcn_bbox(x)}
        if self.deformable:
            maps["cls_offset"] = self.rfcn_cls_offset(x)
            maps["bbox_offset"] = self.rfcn_bbox_offset(x)
        return maps


class DeformPSROIPool(DeformROIPool):
    """Deformable RoI pooling whose k x k bins read channels of their own, as in `PSROIPool`."""

    def __init__(self, output_size: int, spatial_scale: float, sampling_ratio: int, gamma: float):
        """Arguments of `DeformROIPool`."""
        super().__init__(output_size, spatial_scale, sampling_ratio, gamma, group_size=output_size)


def check_rfcn(cfg: CfgNode) -> None:
    """Raises ValueError, naming the key, if a config asks for what R-FCN cannot do."""
    keys, features = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
    types = {c.__name__: c for c in (PSROIPool, DeformPSROIPool)}
    if keys.POOLER_TYPE not in types:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.POOLER_TYPE is {keys.POOLER_TYPE}: set it to PSROIPool, or to "
            "DeformPSROIPool, for the position-sensitive maps of RFCNROIHeads"
        )
    positive = ["REDUCED_DIM", "POOLER_RESOLUTION"]
    if types[keys.POOLER_TYPE] is DeformPSROIPool:
        positive.append("POOLER_SAMPLING_RATIO")
    for key in positive:
        if keys[key] < 1:
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.{key} is {keys[key]}: RFCNROIHeads needs 1 or more"
            )
    if not keys.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            "R-FCN has one box for all classes: "
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True"
        )
    if len(features) != 1:
        raise ValueError(f"MODEL.ROI_HEADS.IN_FEATURES is {features}: R-FCN reads one map")
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key]:
            raise ValueError(f"MODEL.{key} is True: R-FCN finds boxes and nothing else")


@ROI_HEADS_REGISTRY.register()
@reads(
    *MXNetOutputLayers.config_keys,
    "MODEL.ROI_BOX_HEAD.REDUCED_DIM",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "MODEL.ROI_BOX_HEAD.POOLER_GAMMA",
    checks=[*checks_of(MXNetOutputLayers), check_rfcn],
)
class RFCNROIHeads(ROIHeads):
    """
    The heads of R-FCN: position-sensitive score maps, RoI pooling and voting (arXiv 1605.06409,
    Sec. 2), plain or deformable (arXiv 1703.06211, Eq. 5-6 and Fig. 4). All layers run over the
    whole image; what is left per RoI has no parameters.
    """

    @configurable
    def __init__(
        self,
        *,
        score_maps: RFCNScoreMaps,
        box_predictor: MXNetOutputLayers,
        pooler: PSROIPool | DeformPSROIPool,
        offset_pooler: DeformPSROIPool | None = None,
        **kwargs,
    ):
        """
        Args:
            score_maps: makes the position-sensitive maps from the backbone's features
            box_predictor: losses and inference, of votes; it has no layers left
            pooler: of the score maps
            offset_pooler: of the offset maps; None pools without offsets
            others: as in ROIHeads
        """
        super().__init__(**kwargs)
        self.score_maps = score_maps
        self.box_predictor = box_predictor
        self.pooler = pooler
        self.offset_pooler = offset_pooler

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        check_rfcn(cfg)
        (feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
        keys, shape = cfg.MODEL.ROI_BOX_HEAD, input_shape[feature]
        deformable = keys.POOLER_TYPE == DeformPSROIPool.__name__
        ret = super().from_config(cfg)
        ret["box_predictor"] = MXNetOutputLayers(cfg, ShapeSpec(channels=1))
        # Votes are what these two layers predict in other heads.
        del ret["box_predictor"].cls_score, ret["box_predictor"].bbox_pred
        ret["score_maps"] = RFCNScoreMaps(
            in_feature=feature,
            in_channels=shape.channels,
            reduced_dim=keys.REDUCED_DIM,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            group_size=keys.POOLER_RESOLUTION,
            deformable=deformable,
        )
        size = dict(output_size=keys.POOLER_RESOLUTION, spatial_scale=1.0 / shape.stride)
        if not deformable:
            return {**ret, "pooler": PSROIPool(**size)}
        size.update(sampling_ratio=keys.POOLER_SAMPLING_RATIO, gamma=keys.POOLER_GAMMA)
        return {
            **ret,
            "pooler": DeformPSROIPool(**size),
            "offset_pooler": DeformPSROIPool(**size),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """
        Args:
            images: those of `RFCN` have the size of the wanted results, see `tell_scale`
            features: maps of the backbone, (N, C, H, W) each
            proposals, targets: as in ROIHeads
        Returns:
            as in ROIHeads: detections and, in training, losses
        """
        maps = self.score_maps(features)
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        rois = convert_boxes_to_pooler_format([p.proposal_boxes for p in proposals])
        predictions = self.vote(maps, rois, "cls"), self.vote(maps, rois, "bbox")
        if self.training:
            return proposals, self.box_predictor.losses(predictions, proposals)
        tell_scale(proposals, images)
        detections, _ = self.box_predictor.inference(predictions, proposals)
        return detections, {}

    def vote(self, maps: dict[str, Tensor], rois: Tensor, kind: str) -> Tensor:
        """
        The mean over the bins, (1 / k^2) * sum over i, j of r_d(i, j) (arXiv 1605.06409, Sec. 2):
        r_d(i, j) is the mean of channel (d, i, j) of the map within bin (i, j) of the RoI (Eq. 1).

        Args:
            maps: of `score_maps`
            rois: (R, 5), image index, x0, y0, x1, y1 in input pixels
            kind: "cls" or "bbox"
        Returns:
            Tensor: (R, D), float32, with D = K + 1 classes or 4 deltas. An empty bin is 0, and k^2
            counts it, as in the original
        """
        # In 16 bits an offset would be off by tenths of a pixel in a large RoI.
        if self.offset_pooler is None:
            pooled = self.pooler(maps[kind].float(), rois)
        else:
            # The offsets of the bins come from position-sensitive maps as well. Those are pooled
            # without offsets.
            offset = self.offset_pooler(maps[kind + "_offset"].float(), rois)
            pooled = self.pooler(maps[kind].float(), rois, offset)
        return pooled.mean(dim=(2, 3))
