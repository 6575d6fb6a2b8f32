"""What is wrong with a box, a mask or keypoints, in words that follow "an object has"; or ""."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import numpy as np
from detectron2.structures import BoxMode

__all__ = [
    "LARGEST",
    "box_problem",
    "is_count",
    "is_empty_mask",
    "keypoint_form_problem",
    "keypoint_problem",
    "mask_problem",
]


LARGEST = 1e300  # integers in JSON can be larger than all floating-point numbers


def box_problem(box, mode: BoxMode, width: Real, height: Real) -> str:
    """
    Args:
        box: of a file, in pixels
        mode: of the box. Of rotated ones, XYWHA_ABS, the form alone is looked at
        width, height: of the image; infinite where it is not known
    """
    if mode in (BoxMode.XYXY_REL, BoxMode.XYWH_REL):
        return f"a box of the mode {BoxMode(mode).name}, which detectron2 cannot read: give pixels"
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        if not isinstance(mode, int) or mode != BoxMode.XYWHA_ABS:
            return f"the bbox_mode {mode!r:.60}, expected BoxMode.XYXY_ABS or XYWH_ABS"
        is_box = isinstance(box, (list, tuple)) and len(box) == 5 and all(map(_is_number, box))
        return "" if is_box else f"the rotated box {box!r:.60}, expected five numbers"
    if not isinstance(box, (list, tuple)):  # detectron2 fails on arrays
        what = (
            f"{box!r:.60}" if isinstance(box, (str, Mapping)) or box is None else type(box).__name__
        )
        return f"the box {what}, expected a list of four numbers"
    if len(box) != 4 or not all(map(_is_number, box)):
        return f"the box {box!r:.60}, expected four numbers"
    try:
        x, y, right, bottom = map(float, box)
    except OverflowError:
        return f"the box {box!r:.60}, which is not finite"
    if mode == BoxMode.XYWH_ABS:
        right, bottom = x + right, y + bottom
    if not all(map(math.isfinite, (x, y, right, bottom))):
        return f"the box {box!r:.60}, which is not finite"
    if right < x or bottom < y:
        return f"the box {box!r:.60}, whose width or height is negative"
    if _is_far((x, right), width) or _is_far((y, bottom), height):
        return f"the box {box!r:.60}, far outside of the image of {width} x {height} pixels"
    return ""


def mask_problem(mask, width: Real, height: Real) -> str:
    """
    Args:
        mask: polygons [[x, y, x, y, ...], ...] in pixels, or RLE, a dict of "size" [height, width]
            and "counts", compressed or not
        width, height: of the image; infinite where it is not known. RLE tells it
    """
    if isinstance(mask, Mapping):
        return _rle_problem(mask, width, height)
    if isinstance(mask, np.ndarray):  # detectron2 fails on it
        return (
            "an array as a mask, expected polygons or RLE: give "
            "pycocotools.mask.encode(numpy.asfortranarray(mask, dtype=numpy.uint8))"
        )
    if not isinstance(mask, Sequence) or isinstance(mask, str):
        return f"the segmentation {mask!r:.40}, expected polygons or RLE"
    for polygon in mask:
        if problem := _polygon_problem(polygon, width, height):
            return problem
    return "" if mask else "a segmentation without polygons"


def is_empty_mask(mask) -> bool:
    """Whether a mask, in which `mask_problem` finds nothing, is without pixels, or without area."""
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        lengths = _compressed_counts(counts) if isinstance(counts, (str, bytes)) else counts
        return not np.asarray(lengths)[1::2].any()  # background and object in turn
    return all(min(p[::2]) == max(p[::2]) or min(p[1::2]) == max(p[1::2]) for p in mask)


def keypoint_form_problem(keypoints, nested: bool) -> str:
    """
    Args:
        keypoints: expected to be numbers, of whatever meaning, in one list
        nested: or in a list of three numbers for each
    """
    entries = keypoints.tolist() if isinstance(keypoints, np.ndarray) else keypoints
    if isinstance(entries, (list, tuple)):
        if nested and all(isinstance(e, (list, tuple)) and len(e) == 3 for e in entries):
            entries = [number for e in entries for number in e]
        if all(map(_is_number, entries)) and not any(
            isinstance(x, int) and abs(x) > LARGEST for x in entries
        ):
            return ""
    return f"the keypoints {keypoints!r:.40}, expected a list of x, y, visibility of each"


def keypoint_problem(keypoints, count: int, width: Real, height: Real) -> str:
    """
    Args:
        keypoints: [x, y, visibility, ...] in pixels, flat or three in a row; visibility is 0 (not
            annotated), 1 or 2
        count: that an object has
        width, height: of the image; infinite where it is not known
    """
    if problem := keypoint_form_problem(keypoints, nested=True):
        return problem
    values = np.asarray(keypoints, dtype=float).ravel()
    if values.size != 3 * count:
        return f"{values.size} numbers for keypoints, expected 3 for each of {count}"
    x, y, seen = values.reshape(-1, 3).T
    if not np.isin(seen, (0, 1, 2)).all():
        return "a keypoint whose visibility is none of 0, 1 and 2"
    if not np.isfinite(values).all():
        return "a keypoint that is not finite"
    if _is_far((x.min(), x.max()), width) or _is_far((y.min(), y.max()), height):
        return f"a keypoint far outside of the image of {width} x {height} pixels"
    return ""


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_far(ends: tuple[float, float], side: Real) -> bool:
    """
    Whether a coordinate is outside of the image by more than its side. Objects at the border reach
    out of it a little; what is further away was made for another image or scale. The bound also
    keeps rasterisation short, whose time grows with the length of a polygon.
    """
    return min(ends) < -side or max(ends) > 2 * side


def _polygon_problem(polygon, width: Real, height: Real) -> str:
    if isinstance(polygon, Real):
        return "a flat list of numbers for polygons, expected a list of lists [[x, y, x, y, ...]]"
    try:
        count, total = len(polygon), float(sum(polygon))
    except OverflowError:
        return "a polygon with numbers that are not finite"
    except (TypeError, ValueError):
        return "a polygon that is no list of numbers [x, y, x, y, ...]"
    if count < 6 or count % 2:
        return f"a polygon of {count} numbers, expected x and y of three points or more"
    if not math.isfinite(total):
        return "a polygon with numbers that are not finite"
    x, y = polygon[::2], polygon[1::2]
    if _is_far((min(x), max(x)), width) or _is_far((min(y), max(y)), height):
        return f"a polygon far outside of the image of {width} x {height} pixels"
    return ""


def _rle_problem(mask: Mapping, width: Real, height: Real) -> str:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(is_count(n) for n in size):
        return f"RLE of the size {size!r:.60}, expected [height, width]"
    if math.isfinite(width) and list(size) != [height, width]:
        swapped = ", which is [width, height]" if list(size) == [width, height] else ""
        return f"RLE of the size {list(size)}{swapped}, expected [{height}, {width}], its image's"
    try:
        lengths = _compressed_counts(counts) if isinstance(counts, (str, bytes)) else counts
        lengths = np.asarray(lengths)
        if lengths.size and lengths.dtype.kind not in "iu":
            raise ValueError("no whole numbers")
        lengths = lengths.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        return f"RLE with the counts {counts!r:.40}, which cannot be read"
    if lengths.ndim != 1 or (lengths < 0).any():
        return "RLE with counts that are negative or no list"
    if lengths.sum() != size[0] * size[1]:
        return f"RLE whose counts add up to {lengths.sum()}, expected {size[0]} x {size[1]} pixels"
    return ""


def is_count(number) -> bool:
    """Whether a value is a whole number of pixels, also one that was written as 640.0."""
    return _is_number(number) and 0 < number < 2**31 and number == int(number)


def _compressed_counts(text: str | bytes) -> np.ndarray:
    """
    The run lengths in COCO's compressed form. Each is written in digits of 5 bits, the lowest
    first, as the characters from "0" (48) on: bit 5 says that another digit follows, and bit 4 of
    the last digit is the sign. From the fourth on each number is a difference to the last but one.

    Raises:
        ValueError: if the text has other characters, or ends within a number
    """
    digits = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8)
    digits = digits.astype(np.int64) - 48
    if len(digits) == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("no run lengths")
    last = np.flatnonzero(digits & 32 == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    places = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    if places.max() > 6:
        raise ValueError("a run length of more than 32 bits")
    numbers = np.add.reduceat((digits & 31) << (5 * places), first)
    numbers -= np.where(digits[last] & 16, 32 << (5 * places[last]), 0)
    # n[i] = d[i] + n[i - 2] for i > 2: two running sums, of which the first three are the starts.
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
