from . import library
from .deform_conv import DeformConv, ModulatedDeformConv, deform_conv
from .deform_roi_pool import DeformROIPool, deform_roi_pool
from .deformable import DeformableConv2d, deformable
from .offset_hooks import hook_offsets
from .ps_roi_pool import PSROIPool, ps_roi_pool
from .soft_nms import batched_soft_nms, multiclass_soft_nms, soft_nms

__all__ = [
    "DeformConv",
    "DeformROIPool",
    "DeformableConv2d",
    "ModulatedDeformConv",
    "PSROIPool",
    "batched_soft_nms",
    "deform_conv",
    "deform_roi_pool",
    "deformable",
    "hook_offsets",
    "multiclass_soft_nms",
    "ps_roi_pool",
    "soft_nms",
]

if not library.COMPILED:
    from . import fallback

    fallback.register()
elif not library.HAS_CUDA:
    from . import fallback

    fallback.register_for_cuda()
