"""Why the IoU of classes of pixels is zero or NaN."""

from collections.abc import Sequence

import numpy as np

__all__ = ["one_class", "pixel_reasons"]


def one_class(pixels: np.ndarray, names: Sequence[str]) -> str:
    """
    Args:
        pixels: (K, K), annotated class by predicted class
        names: of the classes
    Returns:
        str: that all pixels have one predicted class though others are annotated, else ""
    """
    annotated, predicted = (set(np.flatnonzero(pixels.sum(axis=axis))) for axis in (1, 0))
    if len(predicted) != 1 or annotated == predicted:
        return ""
    return (
        f"every pixel is predicted as {names[min(predicted)]}, and "
        f"{len(annotated - predicted)} other classes are annotated: the model is not trained, or "
        "its training diverged; look into MODEL.WEIGHTS."
    )


def pixel_reasons(pixels: np.ndarray, names: Sequence[str], ignored: int, folder: str) -> list[str]:
    """
    Args:
        pixels, names: as above
        ignored: label of pixels that do not count
        folder: of the labels
    Returns:
        list[str]: a sentence for each reason that is true
    """
    if not pixels.sum():
        return [
            f"all pixels of the labels in {folder} have the ignored label {ignored}: nothing is "
            "annotated."
        ]
    wrong = pixels * (1 - np.eye(len(pixels), dtype=pixels.dtype))
    several = np.count_nonzero(pixels.sum(axis=0)) > 1
    # For each annotated class, the pixels of the class that most of it is predicted as.
    if several and 2 * wrong.max(axis=1).sum() > pixels.sum():
        truth, found = np.unravel_index(wrong.argmax(), wrong.shape)
        return [
            "each class is mostly predicted as one other class, most often "
            f"({wrong.max()} pixels) predicted as {names[found]}, annotated as {names[truth]}: the "
            "classes of the data set and of the model are in another order, or MODEL.WEIGHTS are "
            "of other classes."
        ]
    return []
