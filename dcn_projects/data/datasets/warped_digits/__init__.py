"""
Warped digits: a data set that is made, not downloaded, and hard for detectors of rigid templates.

Real handwritten digits, deformed, coloured and overlapping, on photographs, in ten classes. All of
it comes with scikit-learn: the digits are those of `load_digits`, the photographs those of
`load_sample_images`. The two splits share neither a digit nor a pixel of a photograph.
"""

from .make import make_dataset

__all__ = ["make_dataset"]
