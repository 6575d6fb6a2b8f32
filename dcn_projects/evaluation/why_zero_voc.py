"""Why AP is zero or NaN on data in the layout of Pascal VOC."""

from collections.abc import Mapping, Sequence

import numpy as np

from .why_zero import Annotated, Detected, form_reasons, object_reasons

__all__ = ["voc_reasons"]


def voc_reasons(
    annotations: Mapping[str, Sequence[tuple]],
    detections: Mapping[int, Sequence[Sequence[str]]],
    sizes: Mapping[str, tuple[float, float]],
    names: Sequence[str],
    folder: str,
    low: bool,
) -> list[str]:
    """
    Args:
        annotations: image id -> (class name, difficult, box) of every object
        detections: class index -> image, score, x0, y0, x1, y1 of every detection
        sizes: image id -> width, height of those that are known
        names: of the classes
        folder: of the data set
        low: whether AP is
    Returns:
        list[str]: see `object_reasons`; if AP is not low, `form_reasons`
    """
    objects = [(image, *entry) for image, entries in annotations.items() for entry in entries]
    annotated = Annotated(
        source=folder,
        images=[image for image, *_ in objects],
        classes=[name for _, name, _, _ in objects],
        boxes=np.array([box for *_, box in objects], dtype=np.float64).reshape(-1, 4),
        to_find=np.array([not hard and name in names for _, name, hard, _ in objects], dtype=bool),
        others="difficult, and need not be found",
        sizes=dict(sizes),
        names=names,
        corners=True,
    )
    if not low:
        return form_reasons(annotated)
    rows = [(names[k], *row) for k, some in detections.items() for row in some]
    numbers = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 5)
    detected = Detected(
        images=[image for _, image, *_ in rows],
        classes=[name for name, *_ in rows],
        boxes=numbers[:, 1:],
        scores=numbers[:, 0],
    )
    return object_reasons(annotated, detected)
