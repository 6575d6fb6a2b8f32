"""Ids of annotations with which pycocotools finds every object."""

import contextlib
import io
import logging

from pycocotools.coco import COCO

__all__ = ["make_ids_usable"]

LARGEST = 2**53  # pycocotools notes ids as float64, which has all integers up to here


def make_ids_usable(coco: COCO, path: str) -> None:
    """
    pycocotools notes for each detection the id of the object that it finds, in an array of zeros: a
    detection that finds the object 0 counts as wrong, and ids that are no numbers cannot be noted.
    Where the ids are not different integers from 1 on, the annotations are numbered in their order.

    Args:
        coco: annotations that are read from a file, changed in place
        path: of the file, for the warning
    """
    annotations = coco.dataset.get("annotations", ())
    ids = [annotation["id"] for annotation in annotations]
    unusable = [i for i in ids if type(i) is not int or not 0 < i <= LARGEST]
    if not unusable and len(set(ids)) == len(ids):
        return
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    example = f", such as {unusable[0]!r}" if unusable else ""
    logging.getLogger(__name__).warning(
        f"The annotations in {path} are numbered from 1 on for this evaluation, because their ids "
        f"are not different positive integers{example}: other programs may find a lower AP."
    )
