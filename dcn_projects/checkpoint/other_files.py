"""Files that look like weights, and are something else."""

import os

from .archives import is_archive, open_archive

__all__ = ["other_than_weights"]

_ADVICE = "save the state_dict() of the model that it was made of, with torch.save"


def other_than_weights(path: str | os.PathLike) -> str:
    """
    Returns:
        str: what a file is, and what to do, if it is a program, or tensors in another format than
            that of torch.save; '' for all others
    Raises:
        OSError: if it cannot be read
        ValueError: if it is an archive that is damaged, see `open_archive`
    """
    if os.fspath(path).endswith(".onnx"):
        return f"is an ONNX graph, not weights: {_ADVICE}"
    if is_archive(path):
        with open_archive(path) as archive:
            # Below a folder that has the name of the file.
            names = [name.partition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return f"is a TorchScript program, not weights: {_ADVICE}"
        if "archive_format" in names:
            return f"is a program of torch.export, not weights: {_ADVICE}"
        return ""
    with open(path, "rb") as file:
        start = file.read(10)
    # The length of a header of JSON, in 8 bytes, and the header.
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b'{"' and 2 < length < os.path.getsize(path):
        return 'is of safetensors: read it with that package, and torch.save({"model": tensors})'
    return ""
