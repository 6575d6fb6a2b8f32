"""What tests call ps_roi_pool with: see the package."""

from functools import partial

import torch

from dcn_projects.layers import ps_roi_pool
from tests.layers.roi_cases import check_roi_pool, roi_pool_case
from tests.layers.rois import ROIS, SCALE, some_rois

TENSORS = ["input"]


def make_inputs(
    device="cpu",
    dtype=torch.float64,
    N=2,
    D=3,
    size=(9, 8),
    rois=ROIS,
    output_size=(3, 3),
    group_size=None,
):
    generator = torch.Generator().manual_seed(0)
    group_h, group_w = output_size if group_size is None else group_size
    shape = (N, D * group_h * group_w, *size)
    input = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
    return {
        "input": input.to(device=device, dtype=dtype).requires_grad_(),
        "rois": torch.tensor(rois, dtype=dtype, device=device).view(-1, 5),
        "output_size": output_size,
        "spatial_scale": SCALE,
        "group_size": group_size,
    }


TRANSFORMED = ["input", "rois"]
FALLBACK_CASES = [dict(output_size=(4, 6), group_size=(2, 3))]
CUDA_CASES = {"": dict(rois=ROIS * 4)}
GRADIENT_CASES = {
    "group of its bins": dict(D=2, size=(5, 4), output_size=(2, 2)),
    "3 x 2 bins, group 2 x 3": dict(D=1, size=(5, 4), output_size=(3, 2), group_size=(2, 3)),
}


def transform_inputs(size):
    return make_inputs(size=size, rois=ROIS[: 5 + size[0] // 6])


def thread_calls(rand, forward_backward):
    rois = some_rois(rand)
    return {"": forward_backward(lambda t: ps_roi_pool(t, rois, 3, 1 / 4), rand(2, 72, 21, 19))}


FUZZ = (
    partial(roi_pool_case, deformable=False),
    partial(check_roi_pool, "ps_roi_pool"),
    200,
)
