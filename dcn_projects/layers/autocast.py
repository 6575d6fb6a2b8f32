import torch
from torch import Tensor


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """
    Returns:
        torch.dtype: to which autocast casts on the device of `input`; None where it is off, and on
            devices other than CPU and CUDA
    """
    device_type = input.device.type
    if device_type != "cpu" and device_type != "cuda":
        return None
    if torch.jit.is_scripting():
        return _scripted_autocast_dtype(input)
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


# A script that asks torch.is_autocast_enabled() ends in a segmentation fault where it is, up to
# torch 2.11 at least. What becomes of a product of matrices tells the same.
def _scripted_autocast_dtype(input: Tensor) -> torch.dtype | None:
    empty = torch.empty(0, 0, dtype=torch.float32, device=input.device)
    dtype = torch.mm(empty, empty).dtype
    return None if dtype == torch.float32 else dtype
