"""The devices that tests run on: `@pytest.mark.parametrize("device", DEVICES)`."""

import pytest
import torch

from dcn_projects.layers.library import HAS_CUDA

_reason = "there is no CUDA device" if HAS_CUDA else "the operators were built without CUDA"
_without_cuda = pytest.mark.skipif(not (HAS_CUDA and torch.cuda.is_available()), reason=_reason)
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, _without_cuda])
DEVICES = ["cpu", CUDA]
