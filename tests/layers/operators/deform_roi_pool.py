"""What tests call deform_roi_pool with: see the package."""

from functools import partial

import torch

from dcn_projects.layers import deform_roi_pool
from tests.layers.roi_cases import check_roi_pool, roi_pool_case
from tests.layers.rois import ROIS, SCALE, some_rois

TENSORS = ["input", "offset", "mask"]


def make_inputs(
    device="cpu",
    dtype=torch.float64,
    N=2,
    D=4,
    size=(9, 8),
    copies=1,
    rois=ROIS,
    classes=2,
    part=(3, 3),
    output_size=(3, 3),
    group_size=(1, 1),
    masks=1,
    sampling_ratio=3,
):
    """
    Arguments of deform_roi_pool. Offsets move samples by up to 0.7 of a RoI, to places that are not
    integers, where derivatives jump. classes=0: no offset, masks=0: no mask.
    """
    generator = torch.Generator().manual_seed(0)
    rois = rois * copies

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    tensors = {"input": rand(N, D * group_size[0] * group_size[1], *size) - 0.5}
    if classes:
        tensors["offset"] = 14 * rand(len(rois), 2 * classes, *part) - 7
    if masks:
        tensors["mask"] = rand(len(rois), masks, *output_size)
    inputs = {k: t.to(device=device, dtype=dtype).requires_grad_() for k, t in tensors.items()}
    return {
        "offset": None,
        **inputs,
        "rois": torch.tensor(rois, dtype=dtype, device=device).view(-1, 5),
        "output_size": output_size,
        "spatial_scale": SCALE,
        "sampling_ratio": sampling_ratio,
        "group_size": group_size,
    }


TRANSFORMED = ["input", "rois", "offset"]
FALLBACK_CASES = [dict(classes=classes, masks=0, group_size=(3, 3)) for classes in (0, 2)]
CUDA_CASES = {
    "": dict(D=40, copies=4),
    "position-sensitive": dict(group_size=(3, 3), copies=4),
}
_SMALL = dict(D=2, size=(5, 4), output_size=(2, 2), part=(2, 2))
_KINDS = {
    "modulated": {},
    "mask per channel": dict(masks=2, classes=1),
    "no offsets": dict(classes=0, masks=0),
    "offsets shared": dict(classes=1, masks=0),
    "position-sensitive": dict(classes=1, group_size=(2, 2), sampling_ratio=4, masks=0),
    "position-sensitive, modulated": dict(D=1, classes=1, group_size=(2, 2)),
    "4 x 2 bins of 2 x 1 parts": dict(output_size=(4, 2), part=(2, 1), rois=ROIS[:4]),
}
GRADIENT_CASES = {kind: {**_SMALL, **options} for kind, options in _KINDS.items()}


def transform_inputs(size):
    rois = ROIS[: 5 + size[0] // 6]
    return make_inputs(size=size, rois=rois, group_size=(3, 3), masks=0)


def thread_calls(rand, forward_backward):
    input, rois = rand(2, 72, 21, 19), some_rois(rand)
    offset, mask = rand(20, 4, 3, 3), rand(20, 2, 3, 3)
    return {
        "": forward_backward(
            lambda *t: deform_roi_pool(t[0], rois, t[1], 3, 1 / 4, group_size=3, mask=t[2]),
            input,
            offset,
            mask,
        ),
        "with all channels": forward_backward(
            lambda t: deform_roi_pool(t, rois, None, 3, 1 / 4), input
        ),
    }


FUZZ = (
    partial(roi_pool_case, deformable=True),
    partial(check_roi_pool, "deform_roi_pool"),
    200,
)
