from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import nn

__all__ = ["MXNetBoxHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class MXNetBoxHead(FastRCNNConvFCHead):
    """
    detectron2's head of convolutions and fully connected layers, started as in the MXNet code of
    Deformable ConvNets: weights are N(0, 0.01), biases 0.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
