from collections.abc import Callable, Sequence

from detectron2.config import CfgNode as CN
from detectron2.projects.deeplab import add_deeplab_config as add_detectron2_deeplab_config

from .config_renames import register_renames

__all__ = ["add_dcn_config", "checks_of", "keys_read_by", "reads", "register_config"]

_REGISTERED = []  # functions of users' own packages that add keys


def reads(*keys: str, checks: Sequence[Callable[[CN], object]] = ()) -> Callable:
    """
    Declare, on a registered class or builder function, which keys of this project it reads. What a
    base class declares holds for the classes derived from it. A config that sets a key which none
    of its components declares is refused before training: the key would be ignored silently.

    Args:
        keys: full names, such as "MODEL.ROI_HEADS.NMS_TYPE", or of groups, such as "MODEL.MIMIC"
        checks: functions of a config that raise ValueError, naming the key, for a value that cannot
            be used. They are called before anything is built
    """

    def declare(component):
        component.config_keys, component.config_checks = frozenset(keys), tuple(checks)
        return component

    return declare


def keys_read_by(component) -> frozenset[str]:
    """The keys, and groups of keys, that a class or function declares with `reads`."""
    return frozenset().union(*_declarations(component, "config_keys"))


def checks_of(component) -> list[Callable[[CN], object]]:
    """The checks that a class or function declares with `reads`, each once."""
    return list(
        dict.fromkeys(f for some in _declarations(component, "config_checks") for f in some)
    )


def _declarations(component, name: str) -> list:
    """Of a class and of all its bases: Python itself would find that of one base only."""
    bases = getattr(component, "__mro__", (component,))
    return [vars(base).get(name, ()) for base in bases]


def register_config(add_keys: Callable[[CN], None]) -> Callable[[CN], None]:
    """
    Have `add_dcn_config` call a function that adds the keys of a model outside this package, so
    that all programs know them. It is used as a decorator of the function.

    Args:
        add_keys: adds keys to a config, in place
    """
    _REGISTERED.append(add_keys)
    return add_keys


def add_dcn_config(cfg: CN) -> None:
    """
    Add every key of this project to a detectron2 config, in place, with its default; and those of
    users' own packages that were registered with `register_config`.
    """
    add_input_config(cfg)
    add_deform_resnet_config(cfg)
    add_deformable_config(cfg)
    add_rpn_config(cfg)
    add_roi_pooling_config(cfg)
    add_deeplab_config(cfg)
    add_box_head_config(cfg)
    add_ohem_config(cfg)
    add_mimic_config(cfg)
    add_dynamic_rcnn_config(cfg)
    add_soft_nms_config(cfg)
    add_test_augmentation_config(cfg)
    add_solver_config(cfg)
    add_data_loader_config(cfg)
    register_renames(cfg)
    for add_keys in _REGISTERED:
        add_keys(cfg)


def add_input_config(cfg: CN) -> None:
    """What images may be like."""
    # Larger images, labels and frames of videos are refused by their headers, before memory is
    # taken for them. The default is the limit of Pillow, which reads the images.
    cfg.INPUT.MAX_PIXELS = 178_956_970


def add_deform_resnet_config(cfg: CN) -> None:
    """
    Keys of `build_deform_resnet_backbone`, beside detectron2's own DEFORM_ON_PER_STAGE,
    DEFORM_MODULATED, DEFORM_NUM_GROUPS and RES5_DILATION.
    """
    # Of a stage in DEFORM_ON_PER_STAGE only so many blocks, the last ones, are deformable. 0: all.
    cfg.MODEL.RESNETS.DEFORM_LAST_BLOCKS = [0, 0, 0, 0]
    # Stem pooling of Caffe and MXNet: 3x3, stride 2, no padding, sizes rounded up. detectron2 pads
    # by 1 instead, which moves every window by one conv1 pixel. Needed by converted MXNet weights.
    cfg.MODEL.RESNETS.STEM_CEIL_POOL = False
    # Border rule of the 2017 deformable convolution, see `deform_conv(legacy_border=...)`.
    # Needed by the weights of the MXNet repository.
    cfg.MODEL.RESNETS.DEFORM_LEGACY_BORDER = False
    # Factor, 1 or 2, of the mask of modulated convolutions, which starts as sigmoid(0) = 0.5. 1: as
    # in the paper (arXiv 1811.11168). 2: as in its authors' code; the network starts as the plain
    # one, which matters to the frozen BatchNorm of pretrained weights.
    cfg.MODEL.RESNETS.DEFORM_MASK_SCALE = 1.0
    # How the weights of the layers that predict the offsets start: "zeros", or "kaiming_uniform",
    # as in the authors' code of Dynamic R-CNN.
    cfg.MODEL.RESNETS.DEFORM_OFFSET_INIT = "zeros"
    # Where the deformable convolution is dilated, so is the one that computes its offsets. False
    # leaves the latter undilated, as in the MXNet code of DeepLab.
    cfg.MODEL.RESNETS.DEFORM_DILATED_OFFSET = True


def add_deformable_config(cfg: CN) -> None:
    """
    Any convolutions of any model made deformable, see `dcn_projects.modeling.build_model`; and the
    offsets of all deformable layers under control.
    """
    cfg.MODEL.DEFORMABLE = CN()
    # For programs that call detectron2's own build_model with META_ARCHITECTURE
    # `build_deformable_model`: the model whose convolutions become deformable.
    cfg.MODEL.DEFORMABLE.META_ARCHITECTURE = "GeneralizedRCNN"
    # Patterns of the names of these convolutions, * for any characters: "backbone.fpn_output*".
    cfg.MODEL.DEFORMABLE.SELECT = []
    # Whether a mask in [0, 2], 1 at the start, is learnt for every sample (arXiv 1811.11168), and
    # how many groups of channels have offsets of their own.
    cfg.MODEL.DEFORMABLE.MODULATED = False
    cfg.MODEL.DEFORMABLE.NUM_GROUPS = 1
    # Training measures the offsets every so many iterations, see `OffsetStatistics`. 0: never.
    cfg.MODEL.DEFORMABLE.STATISTICS_PERIOD = 100


def add_rpn_config(cfg: CN) -> None:
    """Keys of `MXNetRPN`, beside detectron2's own."""
    # Proposals may reach into the padding, up to the next multiple of this many pixels. 32 in the
    # MXNet code of FPN, which takes the padding for a part of the image.
    cfg.MODEL.RPN.IMAGE_STRIDE = 1


def add_roi_pooling_config(cfg: CN) -> None:
    """
    Keys of the RoI pooling of `DeformROIHeads` and the heads that are built on it, in the box and
    the mask head. POOLER_TYPE may there also be "DeformROIPool" (arXiv 1703.06211) or
    "ModulatedDeformROIPool" (arXiv 1811.11168), with POOLER_SAMPLING_RATIO samples along each side
    of a bin, and "ROIPool" is the maximum with the original's rounding.

    R-FCN (arXiv 1605.06409), in `RFCNROIHeads`, has the same keys of the box head. Its POOLER_TYPE
    is "PSROIPool" or "DeformPSROIPool" (arXiv 1703.06211, Sec. 2.2), and its POOLER_RESOLUTION k: a
    RoI is cut into k x k bins, and every class has k x k score maps.
    """
    # Channels of the 1x1 convolution between feature map and RoI pooling, one for box and mask head
    # together; 0 has none. In R-FCN, which needs it, it stands before the score maps.
    cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM = 0
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        # gamma: the fraction of the RoI size that an offset of 1 stands for.
        head.POOLER_GAMMA = 0.1
        # ModulatedDeformROIPool: width of the two hidden layers that predict offsets and mask, and
        # whether all levels of a pyramid share these layers or each has its own.
        head.POOLER_FC_DIM = 1024
        head.POOLER_SHARE_LEVELS = True


def add_deeplab_config(cfg: CN) -> None:
    """
    DeepLab (arXiv 1606.00915), beside the keys of detectron2's DeepLab project (such as
    SOLVER.POLY_LR_POWER of the schedule WarmupPolyLR), which are added too. Of MODEL.SEM_SEG_HEAD
    `DeepLabHead` reads IN_FEATURES, CONVS_DIM, NUM_CLASSES and IGNORE_VALUE.
    """
    add_detectron2_deeplab_config(cfg)
    # Test on windows of [height, width] pixels that move over the image, after it was scaled. []
    # takes the whole image at once.
    cfg.TEST.WINDOW_SIZE = []
    # Pixels from one window to the next, [down, right], not more than WINDOW_SIZE. The last ones
    # end with the image.
    cfg.TEST.WINDOW_STRIDE = []


def add_box_head_config(cfg: CN) -> None:
    """
    Keys of `MXNetROIHeads`: Faster R-CNN with two fully connected layers and FPN, as in the MXNet
    code of Deformable ConvNets (arXiv 1703.06211).
    """
    # Where fewer RoIs than BATCH_SIZE_PER_IMAGE can be sampled, fill up with more background: any
    # RoIs that are not foreground, also those below a lower bound of the background's IoU, which
    # IOU_THRESHOLDS [low, 0.5] and IOU_LABELS [-1, 0, 1] set.
    cfg.MODEL.ROI_HEADS.FILL_BATCH = False


def add_ohem_config(cfg: CN) -> None:
    """
    Online hard example mining (arXiv 1604.03540), in all box heads of this project.
    """
    # RoIs kept per image, in a cascade by each stage: those of the largest loss. 0 keeps all that
    # were sampled.
    cfg.MODEL.ROI_BOX_HEAD.OHEM_NUM = 0
    # The box loss, too, sees the kept RoIs only. False: they are chosen by cross entropy, for the
    # cross entropy alone, and the box loss sees all, as in TreB1eN's PyTorch code of DCNv2.
    cfg.MODEL.ROI_BOX_HEAD.OHEM_BOX_LOSS = True


def add_mimic_config(cfg: CN) -> None:
    """R-CNN feature mimicking of DCNv2 (arXiv 1811.11168, Sec. 3.3) in `MimicRCNN`."""
    cfg.MODEL.MIMIC = CN()
    # Foreground RoIs drawn per image; all, where there are fewer.
    cfg.MODEL.MIMIC.NUM_SAMPLES = 32
    # Side of the patch, in pixels, to which the image inside a RoI is scaled.
    cfg.MODEL.MIMIC.PATCH_SIZE = 224
    # Weights of 1 - cosine and of the cross entropy of the patches.
    cfg.MODEL.MIMIC.COS_WEIGHT = 0.1
    cfg.MODEL.MIMIC.CLS_WEIGHT = 0.1
    # RoIs whose width or height is not above this many pixels are left out. 16 in TreB1eN's code.
    cfg.MODEL.MIMIC.MIN_BOX = 0
    # Only the detector learns from the cosine, not the branch of the patches.
    cfg.MODEL.MIMIC.DETACH_TEACHER = False
    # 1 - cosine is summed over the RoIs of an image and averaged over the images of a GPU
    # ("sum_per_image", the paper's formula), or averaged over all RoIs ("mean").
    cfg.MODEL.MIMIC.REDUCTION = "sum_per_image"


def add_dynamic_rcnn_config(cfg: CN) -> None:
    """
    Dynamic R-CNN (arXiv 2004.06002), in `DeformROIHeads` and all heads that combine with it.
    """
    cfg.MODEL.DYNAMIC_RCNN = CN()
    # Whether the heads are dynamic. DynamicROIHeads and DynamicCascadeROIHeads always are.
    cfg.MODEL.DYNAMIC_RCNN.ENABLED = False
    # Dynamic label assignment: the IoU from which a proposal is foreground follows the proposals.
    # Without it, that is ROI_HEADS.IOU_THRESHOLDS.
    cfg.MODEL.DYNAMIC_RCNN.DLA = True
    # Dynamic SmoothL1 loss: beta of the box loss follows the regression errors of the proposals.
    # Without it, that is ROI_BOX_HEAD.SMOOTH_L1_BETA.
    cfg.MODEL.DYNAMIC_RCNN.DSL = True
    # K_I and K_beta: of the proposals of an iteration, the K_I-th largest IoU and the K_beta-th
    # smallest regression error are recorded. Ranks of one image: two images of a process have twice
    # these.
    cfg.MODEL.DYNAMIC_RCNN.IOU_TOPK = 75
    cfg.MODEL.DYNAMIC_RCNN.ERROR_TOPK = 10
    # C: so many iterations make a window. At its end the mean of the IoUs is the new threshold,
    # and the median of the errors the new beta.
    cfg.MODEL.DYNAMIC_RCNN.UPDATE_PERIOD = 100
    # The threshold at the start, unless MODEL.WEIGHTS has one, and the lowest one ever. A cascade
    # takes its IOUS instead.
    cfg.MODEL.DYNAMIC_RCNN.WARMUP_IOU = 0.4
    # beta at the start, and the highest one ever.
    cfg.MODEL.DYNAMIC_RCNN.WARMUP_BETA = 1.0
    # All processes share threshold and beta, from the values of all. In the authors' code (False)
    # each has its own; a checkpoint holds those of the first process.
    cfg.MODEL.DYNAMIC_RCNN.SYNC = True
    # As the authors' code, compare proposals below the threshold with the first object of the
    # image rather than the best one, and count the errors of background too.
    cfg.MODEL.DYNAMIC_RCNN.REFERENCE_QUIRK = False


def add_soft_nms_config(cfg: CN) -> None:
    """
    Soft-NMS (arXiv 1704.04503) of the detections, in the box heads of this project. It takes
    scores above SCORE_THRESH_TEST, and TEST.DETECTIONS_PER_IMAGE are kept.
    """
    # "hard": drop boxes whose IoU with a better one of their class is above NMS_THRESH_TEST;
    # "linear": multiply their score by 1 - IoU;
    # "gaussian": multiply the score of every box by exp(-IoU^2 / SOFT_NMS_SIGMA).
    cfg.MODEL.ROI_HEADS.NMS_TYPE = "hard"
    # 0.5 in the paper, 0.6 in the MXNet code of Deformable ConvNets.
    cfg.MODEL.ROI_HEADS.SOFT_NMS_SIGMA = 0.5
    # "linear" and "gaussian" drop a box whose score falls to this or below.
    cfg.MODEL.ROI_HEADS.SOFT_NMS_SCORE_THRESH = 0.001


def add_test_augmentation_config(cfg: CN) -> None:
    """
    Keys of `MultiScaleTTA`, beside detectron2's own TEST.AUG.ENABLED, MIN_SIZES, MAX_SIZE, FLIP.
    """
    # List of [short side, longest side]: the scales, each with a limit of its own. If it is empty
    # the scales are MIN_SIZES, all with the limit MAX_SIZE.
    cfg.TEST.AUG.SCALES = []
    # "detections": as in detectron2, the views are made from the image that is scaled for testing,
    # each has its NMS, and what is left meets in a second one.
    # "raw": the views are made from the image file, and all boxes above SCORE_THRESH_TEST meet in
    # the only NMS, as in the MXNet code of Deformable ConvNets and in Dynamic R-CNN.
    cfg.TEST.AUG.MERGE = "detections"


def add_solver_config(cfg: CN) -> None:
    """The optimizer, and learning rates that differ between layers."""
    # "SGD" as in detectron2, or "AdamW" (arXiv 1711.05101) with its usual betas, which trains
    # networks from scratch faster. MOMENTUM and NESTEROV are SGD's only.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # List of [regular expression, factor]. The learning rate of a parameter whose name matches
    # (re.search) is multiplied by the factor; of several matches the first counts.
    cfg.SOLVER.LR_FACTORS = []


def add_data_loader_config(cfg: CN) -> None:
    """What the training reads."""
    # With --resume, go on as if the training had not been stopped: the images, their augmentation
    # and all that is drawn in an iteration depend on SEED (0 or more) and the iteration alone.
    # Without it, as in detectron2, the images are shuffled anew.
    cfg.DATALOADER.EXACT_RESUME = False
