from . import library
from .deform_conv import DeformConv, ModulatedDeformConv, deform_conv
from .deform_roi_pool import DeformROIPool, deform_roi_pool
from .ps_roi_pool import PSROIPool, ps_roi_pool

__all__ = [
    "DeformConv",
    "DeformROIPool",
    "ModulatedDeformConv",
    "PSROIPool",
    "deform_conv",
    "deform_roi_pool",
    "ps_roi_pool",
]

if not library.COMPILED:
    from . import fallback

    fallback.register()
