"""
Draw whole pictures: a photograph or a texture, clutter, and digits painted over each other.

Lengths are in pixels of the picture, sides of digits in fractions of its side.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

from .glyphs import digit_samples, warp_glyph

DIGITS_PER_IMAGE = (2, 6)
DIGIT_SIDE = (0.16, 0.55)  # longer side of a digit's box, as a fraction of the picture's side
MAX_HIDDEN = 0.4  # share of a digit that later digits and the picture's border may hide
MIN_CONTRAST = (50.0, 130.0)  # distance in RGB between a digit and what it is painted on
TEXTURE_SHARE = 0.25  # of the pictures have a procedural texture instead of a photograph
SPLITS = ("train", "test")
# Training crops lie left of this share of a photograph's width, test crops right of it.
TRAIN_WIDTH = 0.6


@dataclass
class DrawnDigit:
    """
    Attributes:
        label: 0..9
        mask: (size, size), bool, the whole digit as far as it lies in the image
        visible: (size, size), bool, what later digits leave of `mask`
        hidden: share of the digit that other digits and the image border hide
    """

    label: int
    mask: np.ndarray
    visible: np.ndarray
    hidden: float


@dataclass
class Scene:
    """
    Attributes:
        image: (size, size, 3), uint8, RGB
        digits: list[DrawnDigit], from back to front
    """

    image: np.ndarray
    digits: list


class WarpedDigits:
    """The scenes of one split; the same arguments and index draw the same scene."""

    def __init__(self, split: str, size: int = 192, seed: int = 0, warp: float = 1.0):
        """
        Args:
            split: "train" or "test"
            size: side of the square images in pixels
            seed: of all random choices, not negative
            warp: factor on the smooth part of the digits' deformation
        Raises:
            ValueError: if the split is unknown
        """
        self.split_id = SPLITS.index(split)
        self.size, self.seed, self.warp = size, seed, warp
        self.glyphs, self.labels = digit_samples(split)
        self.photos = photographs(split)

    def draw(self, index: int) -> Scene:
        """
        Args:
            index: of the image in its split, from 0
        """
        rng = np.random.default_rng([self.seed, self.split_id, index])
        canvas = self._draw_background(rng)
        _draw_clutter(rng, canvas)
        digits, areas = [], []
        for _ in range(rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)):
            self._add_digit(rng, canvas, digits, areas)
        return Scene(_photograph(rng, canvas), digits)

    def _draw_background(self, rng) -> np.ndarray:
        if rng.random() < TEXTURE_SHARE:
            canvas = _texture(rng, self.size)
        else:
            canvas = _random_crop(rng, self.photos[rng.integers(len(self.photos))], self.size)
        return np.clip((canvas - 128) * rng.uniform(0.6, 1.1) + 128 + rng.uniform(-40, 40), 0, 255)

    def _add_digit(self, rng, canvas, digits, areas, attempts: int = 20):
        """
        Paint one more digit, where it hides none of the former too much; leave it out when no such
        place turns up. `areas` are those of the whole digits, with what is outside the image.
        """
        sample = rng.integers(len(self.glyphs))
        side = np.exp(rng.uniform(*np.log(DIGIT_SIDE))) * self.size
        for _ in range(attempts):
            alpha = warp_glyph(rng, self.glyphs[sample], side, self.warp)
            layer = _place(rng, alpha, self.size)
            mask = layer > 0.5
            left = [np.count_nonzero(d.visible & ~mask) for d in digits] + [np.count_nonzero(mask)]
            whole = [*areas, np.count_nonzero(alpha > 0.5)]
            hidden = [1 - n / area for n, area in zip(left, whole, strict=True)]
            if max(hidden) <= MAX_HIDDEN:
                break
        else:
            return
        _paint(rng, canvas, layer, mask)
        for digit in digits:
            digit.visible = digit.visible & ~mask
        digits.append(DrawnDigit(int(self.labels[sample]), mask, mask, 0.0))
        for digit, share in zip(digits, hidden, strict=True):
            digit.hidden = share
        areas[:] = whole


def photographs(split: str):
    """
    Returns:
        list of (H, W, 3), float32, 0..255: this split's part of every photograph
    """
    parts = []
    for photo in load_sample_images().images:
        border = int(photo.shape[1] * TRAIN_WIDTH)
        part = photo[:, :border] if split == "train" else photo[:, border:]
        parts.append(part.astype(np.float32))
    return parts


def _smooth_noise(rng, cells: int, size: int, channels: int = 1) -> np.ndarray:
    """(size, size, channels): cubic interpolation of normal noise on a grid of cells x cells."""
    grid = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    noise = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return noise.reshape(size, size, channels)


def _texture(rng, size: int) -> np.ndarray:
    """A colour, and noise of several octaves over it."""
    canvas = np.full((size, size, 3), rng.uniform(40, 215, 3), np.float32)
    for cells in (3, 8, 20, 60):
        canvas += _smooth_noise(rng, cells, size, 3) * rng.uniform(0, 30)
        canvas += _smooth_noise(rng, cells, size) * rng.uniform(0, 30)
    return canvas


def _random_crop(rng, photo: np.ndarray, size: int) -> np.ndarray:
    """A square of the photograph, turned by quarters, mirrored and with its colours exchanged."""
    side = int(rng.uniform(0.25, 0.95) * min(photo.shape[:2]))
    y, x = (rng.integers(0, n - side + 1) for n in photo.shape[:2])
    crop = np.rot90(photo[y : y + side, x : x + side], rng.integers(4))
    crop = crop[:, :: rng.choice([-1, 1]), rng.permutation(3)]
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_LINEAR)


def _draw_clutter(rng, canvas: np.ndarray):
    """
    Triangles and bent strokes behind the digits. None is shaped like a digit: the strokes run
    across the whole picture.
    """
    size = len(canvas)
    for _ in range(rng.integers(1, 6)):
        colour = rng.uniform(0, 255, 3)
        layer = np.zeros((size, size), np.uint8)
        if rng.random() < 0.5:
            corners = rng.uniform(0, size, 2) + rng.uniform(-0.25, 0.25, (3, 2)) * size
            cv2.fillPoly(layer, [corners.astype(np.int32)], 255, cv2.LINE_AA)
        else:
            bend = rng.uniform(-0.3, 1.3, (3, 2)) * size
            bend[0, 0], bend[2, 0] = -0.1 * size, 1.1 * size
            t = np.linspace(0, 1, 20)[:, None]
            curve = (1 - t) ** 2 * bend[0] + 2 * t * (1 - t) * bend[1] + t**2 * bend[2]
            curve = curve[:, :: rng.choice([-1, 1])].astype(np.int32)
            width = max(1, int(rng.uniform(0.01, 0.05) * size))
            cv2.polylines(layer, [curve], False, 255, width, cv2.LINE_AA)
        alpha = layer[..., None] * np.float32(rng.uniform(0.4, 1.0) / 255)
        canvas += alpha * (colour.astype(np.float32) - canvas)


def _place(rng, alpha: np.ndarray, size: int) -> np.ndarray:
    """(size, size), float32: `alpha` at a random place, up to 15 % of its sides outside."""
    h, w = alpha.shape
    x = int(rng.uniform(-0.15 * w, size - 0.85 * w))
    y = int(rng.uniform(-0.15 * h, size - 0.85 * h))
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, size), min(y + h, size)
    layer = np.zeros((size, size), np.float32)
    layer[y0:y1, x0:x1] = alpha[y0 - y : y1 - y, x0 - x : x1 - x]
    return layer


def _paint(rng, canvas, layer, mask):
    """Blend a digit into the canvas, in a colour that differs from what it covers."""
    below = canvas[mask].mean(0)
    contrast = rng.uniform(*MIN_CONTRAST)
    colour = rng.uniform(0, 255, 3)
    while np.linalg.norm(colour - below) < contrast:
        colour = rng.uniform(0, 255, 3)
    shade = _smooth_noise(rng, 3, len(canvas), 3) * rng.uniform(0, 20)
    opacity = rng.uniform(0.75, 1.0)
    canvas += layer[..., None] * opacity * (colour.astype(np.float32) + shade - canvas)


def _photograph(rng, canvas: np.ndarray) -> np.ndarray:
    """What a camera adds: a little blur, a little noise."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.9))
    canvas += rng.standard_normal(canvas.shape, np.float32) * rng.uniform(1, 10)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
