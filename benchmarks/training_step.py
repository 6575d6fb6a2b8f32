"""What the benchmarks of training steps share: a batch of noise, and a step."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def make_inputs(size: tuple[int, int], images: int, objects: int) -> list[dict]:
    """
    Images of noise with objects of class 0 at random places; the whole box is their mask.

    Args:
        size: height and width
    """
    torch.manual_seed(0)
    inputs = []
    for _ in range(images):
        corner = torch.rand(objects, 2) * torch.tensor(size[::-1]) * 0.7
        sides = 8 + torch.rand(objects, 2) * min(size) * 0.25
        instances = Instances(size, gt_boxes=Boxes(torch.cat((corner, corner + sides), dim=1)))
        instances.gt_classes = torch.zeros(objects, dtype=torch.int64)
        x1, y1, x2, y2 = instances.gt_boxes.tensor[..., None, None].unbind(1)
        y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
        instances.gt_masks = BitMasks((x1 <= x) & (x < x2) & (y1 <= y) & (y < y2))
        image = torch.randint(256, (3, *size), dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances})
    return inputs


def step(model: torch.nn.Module, inputs: list[dict]) -> None:
    """Forward and backward: what an optimizer does depends on the parameters only."""
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    model.zero_grad()
