"""Images that are too narrow for a network, which no config and no weights are to blame for."""

import contextlib
from collections.abc import Iterator

import numpy as np
from detectron2.engine import DefaultPredictor

__all__ = ["NarrowImageError", "narrow_images_refused"]

_STRIDE = 32  # pixels of the network input per cell of the coarsest map


class NarrowImageError(ValueError):
    """Tells the size of an image, and nothing of its file."""


@contextlib.contextmanager
def narrow_images_refused(predictor: DefaultPredictor, image: np.ndarray) -> Iterator[None]:
    """
    Within this context a predictor is given an image, (H, W, 3).

    Raises:
        NarrowImageError: if the predictor fails, and the image is narrower than a cell for the
            network: resizing has left none of it, or a layer that does not pad has
    """
    try:
        yield
    except (RuntimeError, ValueError) as e:
        resize = predictor.aug.get_transform(image)
        if min(resize.new_h, resize.new_w) >= _STRIDE:
            raise
        raise NarrowImageError(
            f"the image has {image.shape[1]} x {image.shape[0]} pixels, of which the network would "
            f"see {resize.new_w} x {resize.new_h}: it is too narrow. Cut it into pieces, or raise "
            "INPUT.MAX_SIZE_TEST"
        ) from e
