"""
What moves while Dynamic R-CNN trains (arXiv 2004.06002): the threshold of label assignment (Sec.
4.1), the beta of the SmoothL1 loss (Sec. 4.2), and the statistics of the proposals that both
follow. A window has C iterations. From the IoUs and errors of the proposals in iteration t,

    I_t = the K_I-th largest IoU          threshold = max(mean of I_t, its start)
    E_t = the K_beta-th smallest error    beta      = min(median of E_t, its start)
"""

import logging
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from dcn_projects.config import add_dynamic_rcnn_config, reads

__all__ = ["DynamicMatcher", "DynamicSmoothL1", "DynamicTraining", "warn_of_unused_keys"]

# What a statistic is in an iteration without objects: both are at least 0.
ABSENT = -1.0

# A median below it only means that there are many objects: each is a proposal without error of its
# own. As beta it would be a plain L1 loss, and at 0 the loss divides by it.
MIN_BETA = 1e-6


class DynamicMatcher(Matcher):
    """
    detectron2's matcher with one threshold between background and foreground, which follows the
    proposals: dynamic label assignment.
    """

    def __init__(self, threshold: float):
        """
        Args:
            threshold: IoU from which a proposal is foreground, at the start; also the lowest ever
        """
        super().__init__([threshold], [0, 1])
        self.lowest = threshold

    @property
    def threshold(self) -> float:
        return self.thresholds[1]  # between -inf and inf

    @threshold.setter
    def threshold(self, value: float):
        self.thresholds[1] = value

    def update(self, ious: Sequence[float]) -> float:
        """
        Args:
            ious: the IoU of the K_I-th best proposal in each iteration of a window, at least one
        Returns:
            float: their mean, which is the new threshold unless it is below the lowest
        """
        # Exactly rounded, so that it does not depend on the order of the processes.
        mean = math.fsum(ious) / len(ious)
        self.threshold = max(mean, self.lowest)
        return mean


class DynamicSmoothL1:
    """
    The beta of the dynamic SmoothL1 loss, which follows the regression errors of the proposals. Of
    a difference x the loss is x^2 / (2 beta) below beta and |x| - beta / 2 above it, and the
    gradients are x / beta and sign(x): the smaller beta, the larger the gradients of precise boxes.
    The loss itself is that of the heads: `DynamicTraining` gives them this beta.
    """

    def __init__(self, beta: float):
        """
        Args:
            beta: error at which the loss turns from quadratic to linear, at the start; also the
                highest ever
        """
        self.beta = self.highest = beta

    def update(self, errors: Sequence[float]) -> float:
        """
        Args:
            errors: the K_beta-th smallest error in each iteration of a window, at least one
        Returns:
            float: the upper one of their medians, which is the new beta unless it is above the
                highest. If it is 0, beta stays
        """
        median = sorted(errors)[len(errors) // 2]
        if median >= MIN_BETA:
            self.beta = min(median, self.highest)
        return median


def center_errors(boxes: Tensor, gt_boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """
    How far boxes are from their objects, in the units of their regression targets: the mean of
    the absolute targets of x and y. These are dx = (x_gt - x) / width and dy = (y_gt - y) / height
    of the centres (arXiv 1311.2524, Appendix C), each times its weight.

    Args:
        boxes, gt_boxes: (R, 4), x0, y0, x1, y1, the boxes not empty
        weights: of the targets of x and y, and others that are not used
    Returns:
        Tensor: (R,)
    """
    corners = gt_boxes - boxes  # first of all, so that equal boxes have an error of exactly 0
    moved = (corners[:, :2] + corners[:, 2:]) / 2
    dx, dy = (moved / (boxes[:, 2:] - boxes[:, :2])).abs().unbind(dim=1)
    return (weights[0] * dx + weights[1] * dy) / 2


def proposal_statistics(
    boxes: Sequence[Boxes],
    gt_boxes: Sequence[Boxes],
    *,
    threshold: float,
    iou_topk: int,
    error_topk: int,
    weights: Sequence[float],
    reference_quirk: bool = False,
) -> Tensor:
    """
    The statistics of the proposals of an iteration in Dynamic R-CNN (arXiv 2004.06002, Sec. 4): the
    K_I-th largest IoU and the K_beta-th smallest regression error, the latter among those
    that the threshold makes foreground. With fewer proposals than that it is the last one.

    Args:
        boxes, gt_boxes: proposals and objects of each image
        threshold: IoU from which a proposal is foreground
        iou_topk, error_topk: K_I and K_beta of one image; of n images that have objects the ranks
            are n times as large, among all their proposals
        weights: of the regression targets
        reference_quirk: as the authors' code, which compares a proposal below the threshold with
            the first object of its image instead of the best one, and counts the errors of all
    Returns:
        Tensor: (2,), IoU and error, ABSENT where no proposal counts. Nothing here waits for a GPU
    """
    ious, errors = [], []
    for proposals, objects in zip(boxes, gt_boxes):
        if len(objects) == 0:
            continue
        matrix = pairwise_iou(objects, proposals)
        iou, matched = matrix.max(dim=0)
        foreground = iou >= threshold
        if reference_quirk:
            iou = torch.where(foreground, iou, matrix[0])
            matched = matched * foreground
        error = center_errors(proposals.tensor, objects.tensor[matched], weights)
        ious.append(iou)
        errors.append(error if reference_quirk else error.masked_fill(~foreground, math.inf))
    if sum(map(len, ious)) == 0:
        return boxes[0].tensor.new_full((2,), ABSENT)
    iou_topk, error_topk = iou_topk * len(ious), error_topk * len(ious)
    ious, errors = torch.cat(ious), torch.cat(errors)
    iou = ious.topk(min(iou_topk, len(ious))).values[-1]
    smallest = errors.topk(min(error_topk, len(errors)), largest=False).values
    error = smallest.masked_fill(smallest == math.inf, ABSENT).max()
    return torch.stack((iou, error))


def gather(values: Tensor) -> Tensor:
    """
    Exchange values between all processes, each of which must call it.

    Args:
        values: (...), floating-point, of the same shape on every process
    Returns:
        Tensor: (processes, ...), the same on all. A sum with zeros, which every backend has for
            every device, and which leaves the values as they are
    """
    result = values.new_zeros(comm.get_world_size(), *values.shape)
    result[comm.get_rank()] = values
    if len(result) > 1:
        dist.all_reduce(result)
    return result


def warn_of_unused_keys(cfg: CfgNode) -> None:
    """
    For heads that are not dynamic: log one warning, which names the keys of MODEL.DYNAMIC_RCNN that
    differ from their defaults. An error would forbid to switch the method off on the command line.
    """
    defaults = CfgNode({"MODEL": CfgNode()})
    add_dynamic_rcnn_config(defaults)
    given = cfg.MODEL.DYNAMIC_RCNN
    changed = [
        f"MODEL.DYNAMIC_RCNN.{name}"
        for name, value in defaults.MODEL.DYNAMIC_RCNN.items()
        if given[name] != value
    ]
    if changed:
        logging.getLogger(__name__).warning(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} is not dynamic and does not use "
            f"{', '.join(changed)}. Set MODEL.DYNAMIC_RCNN.ENABLED True to use them."
        )


@reads("MODEL.DYNAMIC_RCNN")
class DynamicTraining(nn.Module):
    """
    The part of RoI heads that moves during the training of Dynamic R-CNN (arXiv 2004.06002,
    Algorithm 1): an IoU threshold and the beta of SmoothL1, recomputed every `update_period`
    iterations from statistics of the proposals. Heads with several stages have a pair for each.

    Heads own one as a child module, use `matchers` to label proposals, and in a training forward

        self.dynamic.begin_stage(stage, proposals, targets, box_predictor)
        self.dynamic.end_iteration()    when the losses of all stages are there

    Both numbers and the window of statistics are buffers, the same in all processes with `sync`,
    so that a checkpoint of any iteration has all that the training needs to go on. The place in
    the window is the iteration's: a second forward within an iteration replaces the first one's
    statistics. GPUs are waited for once a window.
    """

    # What only training reads, and the scalars that the log line of a training shows.
    training_only = ("iou_threshold", "beta", "window")
    printed_scalars = ("dynamic_rcnn/iou_threshold", "dynamic_rcnn/beta")

    def __init__(
        self,
        thresholds: Sequence[float],
        betas: Sequence[float],
        *,
        dla: bool,
        dsl: bool,
        iou_topk: int,
        error_topk: int,
        update_period: int,
        sync: bool,
        reference_quirk: bool,
    ):
        """
        Args:
            thresholds, betas: at the start, one of each per stage; also the lowest threshold and
                the highest beta ever
            dla: dynamic label assignment: let the threshold move
            dsl: dynamic SmoothL1 loss: let beta move
            iou_topk, error_topk, reference_quirk: as in `proposal_statistics`
            update_period: C, iterations of a window
            sync: statistics of all processes, else each process has its own numbers
        """
        super().__init__()
        self.matchers = [DynamicMatcher(threshold) for threshold in thresholds]
        self.losses = [DynamicSmoothL1(beta) for beta in betas]
        self.dla, self.dsl, self.update_period, self.sync = dla, dsl, update_period, sync
        self.options = dict(
            iou_topk=iou_topk, error_topk=error_topk, reference_quirk=reference_quirk
        )
        self.measured = [None] * len(thresholds)
        self.start_message = ""
        # Copies of Python's numbers, in the same precision.
        self.register_buffer("iou_threshold", torch.tensor(thresholds, dtype=torch.float64))
        self.register_buffer("beta", torch.tensor(betas, dtype=torch.float64))
        processes = comm.get_world_size() if sync else 1
        window = torch.full((update_period, processes, len(thresholds), 2), ABSENT)
        self.register_buffer("window", window)

    @classmethod
    def from_config(cls, cfg, thresholds: Sequence[float], key: str):
        """
        Args:
            thresholds: IoU at the start of each stage
            key: the one of MODEL that sets them, for errors
        Raises:
            ValueError: naming the key whose value cannot be used
        """
        keys, head = cfg.MODEL.DYNAMIC_RCNN, cfg.MODEL.ROI_BOX_HEAD
        if not all(0 < threshold < 1 for threshold in thresholds):
            raise ValueError(f"MODEL.{key} is {thresholds}, expected IoUs between 0 and 1")
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "TEST.PRECISE_BN.ENABLED: its forward passes would count as iterations of Dynamic "
                "R-CNN"
            )
        for name in ("IOU_TOPK", "ERROR_TOPK", "UPDATE_PERIOD"):
            if keys[name] < 1:
                raise ValueError(f"MODEL.DYNAMIC_RCNN.{name} is {keys[name]}, expected 1 or more")
        if keys.WARMUP_BETA <= 0:
            raise ValueError(
                f"MODEL.DYNAMIC_RCNN.WARMUP_BETA is {keys.WARMUP_BETA}, expected a number above 0"
            )
        if keys.DSL and head.BBOX_REG_LOSS_TYPE != "smooth_l1":
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE is {head.BBOX_REG_LOSS_TYPE}: "
                "MODEL.DYNAMIC_RCNN.DSL needs smooth_l1"
            )
        beta = keys.WARMUP_BETA if keys.DSL else head.SMOOTH_L1_BETA
        return cls(
            thresholds,
            [beta] * len(thresholds),
            dla=keys.DLA,
            dsl=keys.DSL,
            iou_topk=keys.IOU_TOPK,
            error_topk=keys.ERROR_TOPK,
            update_period=keys.UPDATE_PERIOD,
            sync=keys.SYNC,
            reference_quirk=keys.REFERENCE_QUIRK,
        )

    @property
    def differs_between_processes(self) -> str:
        """
        Advice for the case that each process has numbers of its own: a checkpoint then holds those
        of one process only. "" where all processes have the same.
        """
        return "" if self.sync else "Give MODEL.DYNAMIC_RCNN.SYNC True"

    @torch.no_grad()
    def begin_stage(
        self,
        stage: int,
        proposals: Sequence[Instances],
        targets: Sequence[Instances],
        box_predictor: FastRCNNOutputLayers,
        append_gt: bool = False,
    ) -> None:
        """
        Take the statistics of this iteration, and give the predictor the beta of its loss.

        Args:
            stage: counted from 0
            proposals, targets: of the images, before sampling
            append_gt: the heads will add the objects to the proposals
        """
        boxes = [p.proposal_boxes for p in proposals]
        gt_boxes = [t.gt_boxes for t in targets]
        if append_gt:
            boxes = [Boxes.cat(both) for both in zip(boxes, gt_boxes)]
        self.measured[stage] = proposal_statistics(
            boxes,
            gt_boxes,
            threshold=self.matchers[stage].threshold,
            weights=box_predictor.box2box_transform.weights,
            **self.options,
        )
        box_predictor.smooth_l1_beta = self.losses[stage].beta

    @torch.no_grad()
    def end_iteration(self) -> None:
        """
        Log the numbers of this iteration and keep its statistics. At the end of a window compute
        the numbers of the next one. All processes must call it in every iteration, after
        `begin_stage` of all stages, within an EventStorage.
        """
        if self.start_message:
            logging.getLogger(__name__).warning(self.start_message)
            self.start_message = ""
        storage = get_event_storage()
        for stage, (matcher, loss) in enumerate(zip(self.matchers, self.losses)):
            self._log(stage, iou_threshold=matcher.threshold, beta=loss.beta)

        row = storage.iter % self.update_period
        if row == 0:
            self.window.fill_(ABSENT)  # of the window before, or of another training
        measured = torch.stack(self.measured)
        self.window[row] = gather(measured) if self.sync else measured
        if row == self.update_period - 1:
            self._update(storage.iter)

    def _log(self, stage: int, **numbers: float):
        suffix = f"_stage{stage}" if len(self.matchers) > 1 else ""
        for name, value in numbers.items():
            name = f"dynamic_rcnn/{name}{suffix}"
            get_event_storage().put_scalar(name, value, smoothing_hint=False)

    def _keep(self):
        """The numbers in use, in the buffers."""
        for stage, (matcher, loss) in enumerate(zip(self.matchers, self.losses)):
            self.iou_threshold[stage] = matcher.threshold
            self.beta[stage] = loss.beta

    def _update(self, iteration: int):
        """Compute threshold and beta of every stage from the window."""
        for stage, statistics in enumerate(self.window.flatten(0, 1).permute(1, 2, 0).tolist()):
            ious, errors = ([x for x in values if x >= 0] for values in statistics)
            if self.dla and ious:
                self._log(stage, iou_kth=self.matchers[stage].update(ious))
            if self.dsl and errors:
                self._log(stage, error_kth=self.losses[stage].update(errors))
        self._keep()
        logging.getLogger(__name__).info(
            f"Dynamic R-CNN after {iteration + 1} iterations: IoU threshold "
            + ", ".join(f"{matcher.threshold:.4f}" for matcher in self.matchers)
            + "; beta "
            + ", ".join(f"{loss.beta:.4f}" for loss in self.losses)
        )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """
        A checkpoint without the numbers, of Faster R-CNN for example, sets them to their start.
        From one of another number of processes only the window is left out.
        """
        start = {
            "iou_threshold": self.iou_threshold.new_tensor([m.lowest for m in self.matchers]),
            "beta": self.beta.new_tensor([loss.highest for loss in self.losses]),
            "window": torch.full_like(self.window, ABSENT),
        }
        saved = {name: state_dict.get(prefix + name) for name in start}
        fits = {name: x is not None and x.shape == start[name].shape for name, x in saved.items()}
        if not (fits["iou_threshold"] and fits["beta"]):
            # Logged when a training begins: an evaluation does not use these numbers.
            self.start_message = (
                "The checkpoint has no state of Dynamic R-CNN: the IoU threshold starts at "
                f"{start['iou_threshold'].tolist()}, beta at {start['beta'].tolist()}."
            )
            fits = dict.fromkeys(fits, False)
        for name, value in start.items():
            if not fits[name]:
                state_dict[prefix + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # The bounds of the checkpoint's config may have been others.
        if self.dla:
            for matcher, threshold in zip(self.matchers, self.iou_threshold.tolist()):
                matcher.threshold = max(threshold, matcher.lowest)
        if self.dsl:
            for loss, beta in zip(self.losses, self.beta.tolist()):
                loss.beta = min(beta, loss.highest)
        self._keep()
