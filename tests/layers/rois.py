"""RoIs that meet the edges: partly and wholly outside, a point, reversed corners, a huge one."""

import torch

SCALE = 1 / 4
# Image index, x0, y0, x1, y1 in pixels of images of 36 x 32, whose maps are 9 x 8.
ROIS = [
    [0, 3.2, 4.7, 25.6, 30.1],
    [1, 0.5, 2.5, 10.5, 13.5],
    [0, -10.5, -6.2, 12.0, 9.5],
    [1, 20.0, 15.0, 50.0, 70.0],
    [1, 100.0, 100.0, 140.0, 150.0],
    [0, 12.0, 12.0, 12.0, 12.0],
    [1, 20.0, 25.0, 8.0, 5.0],
    [0, -1e4, -2e4, 3e4, 1e4],
]


def some_rois(rand):
    """(20, 5), on two images of 60 pixels; `rand` draws from -1 to 1."""
    corners = 30 * (rand(20, 4).detach() + 1)
    images = torch.arange(20).to(corners)[:, None] % 2
    return torch.cat([images, corners], 1)
