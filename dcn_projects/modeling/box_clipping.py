import torch
from torch import Tensor

__all__ = ["clip_to_a_pixel", "with_last_pixel_of_image"]


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


def with_last_pixel_of_image(boxes: Tensor, scale: Tensor) -> Tensor:
    """
    Boxes as the last NMS of the MXNet code of Deformable ConvNets sees them. It divides the corners
    (x0, y0, x1 - 1, y1 - 1), of the first and the last pixel in the network's input, by the scale,
    and counts both pixels again, now pixels of the image: a box is (x1 - 1 - x0) / scale + 1 wide.
    An overlap is the same in all units. Here the unit is still the pixel of the network's input, of
    which the last pixel has `scale`. So at scale 1 nothing changes.

    Args:
        boxes: (R, 4), x0, y0, x1, y1 in pixels of the network's input, far corners exclusive
        scale: (R, 2) or (2,), x and y: pixels of the network's input per pixel of the image
    Returns:
        Tensor: (R, 4), in the same unit
    """
    return torch.cat((boxes[:, :2], boxes[:, 2:] + (scale - 1)), dim=1)
