import torch.nn.functional as F
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn

from dcn_projects.config import reads
from dcn_projects.layers import DeformableConv2d
from dcn_projects.layers.deformable import OFFSET_INITS

from ..renamed_parameters import HasRenamedParameters

__all__ = [
    "CeilPoolStem",
    "DeformBottleneckBlock",
    "build_deform_resnet_backbone",
    "build_deform_resnet_fpn_backbone",
    "build_deform_retinanet_resnet_fpn_backbone",
]

# Blocks of res2..res5. 14 is a small bottleneck network, for training from scratch.
_NUM_BLOCKS = {
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BASIC_BLOCK_DEPTHS = (18, 34)

# Every builder of a backbone on the ResNet of this file reads these keys of ours.
reads_resnet_keys = reads(
    "MODEL.RESNETS.DEFORM_LAST_BLOCKS",
    "MODEL.RESNETS.STEM_CEIL_POOL",
    "MODEL.RESNETS.DEFORM_LEGACY_BORDER",
    "MODEL.RESNETS.DEFORM_MASK_SCALE",
    "MODEL.RESNETS.DEFORM_OFFSET_INIT",
    "MODEL.RESNETS.DEFORM_DILATED_OFFSET",
)


class CeilPoolStem(BasicStem):
    """
    detectron2's stem with the max pooling of Caffe and MXNet: no padding, and a last window that
    may hang over the edge. An n pixel wide conv1 gives 1 + ceil((n - 3) / 2) cells.
    """

    def forward(self, x):
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=0, ceil_mode=True)


class DeformBottleneckBlock(HasRenamedParameters, BottleneckBlock):
    """
    Bottleneck whose 3x3 convolution is deformable (arXiv 1703.06211, Sec. 2.1) or modulated
    deformable (arXiv 1811.11168, Sec. 3.2). Checkpoints of detectron2's block of the same name
    load: the layouts are the same, and its `conv2_offset` is `conv2.conv_offset` here. Unlike that
    block, it runs on the CPU.
    """

    # The old name is that of detectron2's block, and of version 0.1 of this project.
    renamed_parameters = {r"conv2_offset\.(weight|bias)": r"conv2.conv_offset.\1"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        deform_legacy_border: bool = False,
        deform_mask_scale: float = 1.0,
        deform_offset_init: str = "zeros",
        deform_dilated_offset: bool = True,
    ):
        """
        Args:
            deform_modulated: learn a mask in [0, 1] for every sample
            deform_mask_scale: factor of the mask. It starts at 0.5, which halves the convolution;
                with 2 it starts as the plain one
            deform_num_groups: channel groups that have offsets of their own
            deform_legacy_border: border rule of the 2017 operator, see `deform_conv`
            deform_offset_init: weights of the layer that predicts the offsets: "zeros" or
                "kaiming_uniform"
            deform_dilated_offset: dilate the convolution of the offsets as well
            others: as in detectron2's BottleneckBlock
        """
        super().__init__(
            in_channels,
            out_channels,
            bottleneck_channels=bottleneck_channels,
            stride=stride,
            num_groups=num_groups,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
            dilation=dilation,
        )
        plain = self.conv2
        self.conv2 = DeformableConv2d(
            bottleneck_channels,
            bottleneck_channels,
            kernel_size=3,
            stride=plain.stride,
            padding=plain.padding,
            dilation=plain.dilation,
            groups=num_groups,
            bias=False,
            deformable_groups=deform_num_groups,
            modulated=deform_modulated,
            norm=get_norm(norm, bottleneck_channels),
            legacy_border=deform_legacy_border,
            mask_scale=deform_mask_scale,
            offset_init=deform_offset_init,
            dilated_offset=deform_dilated_offset,
        )
        self.conv2.weight = plain.weight  # initialised as the plain block's


def _num_deformable(keys, stage: int, num_blocks: int) -> int:
    """How many of the last blocks of a stage (0 is res2) are deformable."""
    last, enabled = keys.DEFORM_LAST_BLOCKS[stage], keys.DEFORM_ON_PER_STAGE[stage]
    if not 0 <= last <= (num_blocks if enabled else 0):
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_LAST_BLOCKS is {list(keys.DEFORM_LAST_BLOCKS)}: res{stage + 2} "
            f"has {num_blocks} blocks and DEFORM_ON_PER_STAGE {enabled}"
        )
    return (last or num_blocks) if enabled else 0


@BACKBONE_REGISTRY.register()
@reads_resnet_keys
def build_deform_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """
    detectron2's ResNet, built from the same keys under MODEL.RESNETS, with this project's
    deformable convolution in the stages that DEFORM_ON_PER_STAGE names, or the last blocks of
    them (DEFORM_LAST_BLOCKS), and, with STEM_CEIL_POOL, the stem of Caffe and MXNet. DEPTH may also
    be 14 (bottlenecks).

    Raises:
        ValueError: for a depth that does not exist, or an option that its blocks do not have
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH not in _NUM_BLOCKS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {keys.DEPTH}, expected one of {list(_NUM_BLOCKS)}"
        )
    basic = keys.DEPTH in _BASIC_BLOCK_DEPTHS
    fixed = dict(RES5_DILATION=1, NUM_GROUPS=1, RES2_OUT_CHANNELS=64)
    if basic and (any(keys.DEFORM_ON_PER_STAGE) or any(keys[k] != v for k, v in fixed.items())):
        raise ValueError(
            f"MODEL.RESNETS.DEPTH {keys.DEPTH} has no bottlenecks: DEFORM_ON_PER_STAGE must be all "
            f"False, {', '.join(f'{k} {v}' for k, v in fixed.items())} (or choose another DEPTH)"
        )
    if keys.RES4_DILATION != 1:
        raise ValueError(
            f"MODEL.RESNETS.RES4_DILATION is {keys.RES4_DILATION}, but {cfg.MODEL.BACKBONE.NAME} "
            "dilates res5 alone"
        )
    for key in ("DEFORM_ON_PER_STAGE", "DEFORM_LAST_BLOCKS"):
        if len(keys[key]) != 4:
            raise ValueError(f"MODEL.RESNETS.{key} is {keys[key]}, expected 4 values")
    for key in ("RES5_DILATION", "DEFORM_MASK_SCALE"):
        if keys[key] not in (1, 2):
            raise ValueError(f"MODEL.RESNETS.{key} is {keys[key]}, expected 1 or 2")
    if keys.DEFORM_OFFSET_INIT not in OFFSET_INITS:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_OFFSET_INIT is {keys.DEFORM_OFFSET_INIT}, expected one of "
            f"{list(OFFSET_INITS)}"
        )

    stem = (CeilPoolStem if keys.STEM_CEIL_POOL else BasicStem)(
        input_shape.channels, keys.STEM_OUT_CHANNELS, keys.NORM
    )
    stages = []
    in_channels = keys.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(_NUM_BLOCKS[keys.DEPTH]):
        out_channels = keys.RES2_OUT_CHANNELS * 2**i
        dilation = keys.RES5_DILATION if i == 3 else 1
        # A dilated res5 keeps the resolution of res4 (R-FCN, Sec. 3).
        first_stride = 1 if i == 0 or dilation == 2 else 2
        block = dict(norm=keys.NORM)
        if basic:
            block["block_class"] = BasicBlock
        else:
            block.update(
                block_class=BottleneckBlock,
                bottleneck_channels=keys.NUM_GROUPS * keys.WIDTH_PER_GROUP * 2**i,
                stride_in_1x1=keys.STRIDE_IN_1X1,
                dilation=dilation,
                num_groups=keys.NUM_GROUPS,
            )
        deform = dict(
            block_class=DeformBottleneckBlock,
            deform_modulated=keys.DEFORM_MODULATED,
            deform_num_groups=keys.DEFORM_NUM_GROUPS,
            deform_legacy_border=keys.DEFORM_LEGACY_BORDER,
            deform_mask_scale=keys.DEFORM_MASK_SCALE,
            deform_offset_init=keys.DEFORM_OFFSET_INIT,
            deform_dilated_offset=keys.DEFORM_DILATED_OFFSET,
        )
        num_plain = num_blocks - _num_deformable(keys, i, num_blocks)
        blocks = []
        for j in range(num_blocks):
            blocks += ResNet.make_stage(
                num_blocks=1,
                stride_per_block=[first_stride if j == 0 else 1],
                in_channels=in_channels,
                out_channels=out_channels,
                **(block if j < num_plain else {**block, **deform}),
            )
            in_channels = out_channels
        stages.append(blocks)
    return ResNet(
        stem, stages, out_features=keys.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
@reads_resnet_keys
def build_deform_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """detectron2's feature pyramid, from its keys under MODEL.FPN, on the ResNet above."""
    return _build_fpn(cfg, build_deform_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
@reads_resnet_keys
def build_deform_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """RetinaNet's pyramid in detectron2, with P6 and P7 made of res5, on the ResNet above."""
    bottom_up = build_deform_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg, bottom_up: ResNet, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
