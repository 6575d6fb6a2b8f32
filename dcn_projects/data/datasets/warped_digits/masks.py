"""Masks as boxes, run lengths and polygons."""

import cv2
import numpy as np
import pycocotools.mask as mask_util


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in pixels, the far corner exclusive, of a (H, W) mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_to_rle(mask: np.ndarray) -> dict:
    """COCO's compressed run lengths of a (H, W) bool mask."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """
    COCO polygons of a (H, W) bool mask, one per piece, as flat lists x, y, x, y... in pixels.

    COCO's rasterisation gives the same mask again. A hole is part of its piece's polygon: under the
    even-odd rule, a slit walked in both directions has no width.
    """
    # Contours run through the centres of pixels: on a grid twice as fine, a quarter of a pixel
    # inside the true border. Where corners are left out they move by up to another quarter, and
    # separate the same pixel centres still.
    fine = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    contours = [(cv2.approxPolyDP(c, 0.5, True)[:, 0] + 0.5) / 2 for c in contours]
    polygons = []
    for outer, (_, _, hole, parent) in zip(contours, hierarchy[0], strict=True):
        if parent >= 0:
            continue
        while hole >= 0:
            outer = _join(outer, contours[hole])
            hole = hierarchy[0][hole][0]
        polygons.append(outer.reshape(-1).tolist())
    return polygons


def _join(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """One closed polygon out of two, (m, 2) and (n, 2), by a slit between their nearest corners."""
    distance = ((outer[:, None] - inner[None]) ** 2).sum(-1)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    return np.concatenate([outer[: i + 1], inner[j:], inner[: j + 1], outer[i:]])


def outline(mask: np.ndarray) -> np.ndarray:
    """(n, 2), int: x, y of the pixels along the outer border of the largest piece of a mask."""
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return max(contours, key=cv2.contourArea)[:, 0]
