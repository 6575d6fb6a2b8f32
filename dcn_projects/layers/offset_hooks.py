import inspect
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .deform_conv import DeformConv
from .deform_roi_pool import DeformROIPool
from .deformable import DeformableConv2d

# Called with the name of a layer, the layer, its input (N, C, H, W), its offsets (N, 2*G*K, Ho, Wo)
# or (R, 2*n, part_h, part_w), and for a RoI pooling its RoIs (R, 5), else None.
OffsetCallback = Callable[[str, nn.Module, Tensor, Tensor, Tensor | None], None]


def hook_offsets(model: nn.Module, callback: OffsetCallback) -> list[RemovableHandle]:
    """
    Call `callback` each time that a deformable layer of a model, a module of `dcn_projects.layers`,
    runs with offsets.

    Returns:
        list: one handle for each deformable layer, whose remove() ends the calls
    """
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, (DeformConv, DeformROIPool)):
            hook = partial(_before_layer, callback, name)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        elif isinstance(layer, DeformableConv2d):
            hook = partial(_after_prediction, callback, name, layer)
            handles.append(layer.conv_offset.register_forward_hook(hook))
    return handles


def _before_layer(callback, name, layer, args, kwargs):
    inputs = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
    offset, rois = inputs.get("offset"), inputs.get("rois")
    if offset is not None:
        callback(name, layer, next(iter(inputs.values())), offset, rois)


def _after_prediction(callback, name, layer, conv_offset, inputs, predicted):
    callback(name, layer, inputs[0], predicted[:, : layer.offset_channels], None)
