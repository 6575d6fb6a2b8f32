import torch
from torch import Tensor

__all__ = ["clip_to_a_pixel"]


def clip_to_a_pixel(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """
    Clip boxes to an image as the MXNet code of Deformable ConvNets does: what lies outside becomes
    one pixel wide at the border, so that no box is ever empty. `Boxes.clip` leaves such boxes
    empty, to be dropped later.

    Args:
        boxes: (R, 4), x0, y0, x1, y1
        image_size: (height, width)
    Returns:
        Tensor: (R, 4)
    """
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack(
        (x0.clamp(0, width - 1), y0.clamp(0, height - 1), x1.clamp(1, width), y1.clamp(1, height)),
        dim=1,
    )
