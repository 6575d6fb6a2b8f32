"""
Single digits: scikit-learn's handwritten ones, and their random deformation.

Angles are in degrees. A glyph is an image of ink, 0 to 1, eight times as fine as the 8 x 8 digits.
"""

import cv2
import numpy as np
from sklearn.datasets import load_digits

from .masks import tight_box

MAX_ROTATION = 30.0  # either way; a 6 and a 9 stay 120 degrees apart
WARP = (0.07, 0.16)  # standard deviation of the warp's control points, in half sides of the digit
INK_LEVEL = (0.5, 0.8)  # above it, paper becomes ink: how thin the strokes are
MIN_INK_LEVEL = 0.25  # at which it stops falling, as it does until the digit is in one piece
# The first ones are for training. Neighbours in the sequence tend to be of one hand, so that a cut
# in it parts the writers better than a random choice.
TRAIN_DIGITS = 1400
GLYPH_SCALE = 8  # smooth upsampling of the 8 x 8 digits, once, before they are warped
GLYPH_MARGIN = 2  # empty pixels of the 8 x 8 grid around it: strokes touch its border
MAX_STROKE_RADIUS = 0.18  # of the 8 x 8 grid's side


def digit_samples(split: str):
    """
    Returns:
        glyphs: (n, G, G), float32, ink between 0 and 1 on a smooth grid with a margin
        labels: (n,), int, 0..9
    """
    data = load_digits()
    chosen = slice(0, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    padding = ((0, 0), (GLYPH_MARGIN, GLYPH_MARGIN), (GLYPH_MARGIN, GLYPH_MARGIN))
    images = np.pad(data.images[chosen] / 16, padding).astype(np.float32)
    side = images.shape[1] * GLYPH_SCALE
    glyphs = np.stack([cv2.resize(i, (side, side), interpolation=cv2.INTER_CUBIC) for i in images])
    # Some digits are so thick that their ink runs together and people cannot read them either.
    ink = (glyphs > 0.7).astype(np.uint8)
    radius = np.array([cv2.distanceTransform(g, cv2.DIST_L2, 5).max() for g in ink])
    legible = radius < MAX_STROKE_RADIUS * 8 * GLYPH_SCALE
    return glyphs[legible], data.target[chosen][legible]


class _Warp:
    """
    A random map from the points of the picture to the points of the glyph that are seen there: a
    linear map (rotation, stretch, shear) and a smooth shift, which cubic interpolation makes of
    4 x 4 control points; `strength` is a factor on the shift. The glyph spans -1..1, the control
    points -EXTENT..EXTENT.
    """

    EXTENT = 1.8

    def __init__(self, rng, strength: float):
        angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        stretch = np.exp(rng.uniform(-0.25, 0.25))
        shape = np.array([[stretch, rng.uniform(-0.3, 0.3)], [0, 1 / stretch]])
        self.back = np.linalg.inv(rotation @ shape).astype(np.float32)
        control = rng.standard_normal((4, 4, 2)) * rng.uniform(*WARP) * strength
        self.control = control.astype(np.float32)

    def sample(self, glyph: np.ndarray, window, width: int, height: int) -> np.ndarray:
        """(height, width), float32: the ink in the window (x0, y0, x1, y1) of the picture."""
        x0, y0, x1, y1 = window
        xs = x0 + (np.arange(width) + 0.5) * (x1 - x0) / width
        ys = y0 + (np.arange(height) + 0.5) * (y1 - y0) / height
        points = np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)
        knots = (points + self.EXTENT) * np.float32(3 / (2 * self.EXTENT))
        shift = _remap(self.control, knots, cv2.INTER_CUBIC)
        cells = (points @ self.back.T + shift + 1) * 4 + GLYPH_MARGIN  # of the 8 x 8 grid
        return _remap(glyph, cells * GLYPH_SCALE - 0.5, cv2.INTER_LINEAR)


def _remap(values: np.ndarray, points: np.ndarray, interpolation: int) -> np.ndarray:
    """Read (H, W) or (H, W, C) values at (..., 2) points x, y in pixels."""
    x, y = points[..., 0], points[..., 1]
    return cv2.remap(values, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE)


def warp_glyph(rng, glyph: np.ndarray, side: float, strength: float = 1.0) -> np.ndarray:
    """
    Args:
        glyph: (G, G), ink of one digit
        side: longer side of its tight box after the warp, in pixels
        strength: factor on the smooth part of the warp
    Returns:
        (h, w), float32: opacity; what is above 0.5 is one connected piece and touches all borders
    """
    warp = _Warp(rng, strength)
    # A first look, at a low resolution, finds the digit's extent.
    coarse = 72
    ink = warp.sample(glyph, np.array([-1, -1, 1, 1]) * warp.EXTENT, coarse, coarse)
    level, digit = _connect(ink, rng.uniform(*INK_LEVEL))
    window = np.array(tight_box(digit)) * (2 * warp.EXTENT / coarse) - warp.EXTENT
    extent = window[2:] - window[:2]
    scale = side / extent.max()
    width, height = np.maximum(2, np.round(extent * scale)).astype(int)
    ink = warp.sample(glyph, window, width, height)
    level, digit = _connect(ink, level)
    # Ink rises over about a cell of the 8 x 8 grid, of scale / 4 pixels; the edge takes 1.5 pixels.
    alpha = np.clip((ink - level) * max(1.0, scale / 4 / 1.5) + 0.5, 0, 1)
    alpha[(alpha > 0.5) & ~digit] = 0
    x0, y0, x1, y1 = tight_box(digit)
    return alpha[y0:y1, x0:x1]


def _connect(ink: np.ndarray, level: float):
    """Lower the level until the ink above it is in one piece; that level, and the largest piece."""
    while True:
        count, labels, stats, _ = cv2.connectedComponentsWithStats((ink > level).astype(np.uint8))
        if count == 2 or level < MIN_INK_LEVEL:  # 0 is the background
            return level, labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])
        level -= 0.05
