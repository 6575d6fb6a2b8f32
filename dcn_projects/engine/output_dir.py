import os
from pathlib import Path

__all__ = ["mirrored_output_dir"]


def mirrored_output_dir(root: str, config_file: str) -> str:
    """
    Returns:
        str: the path of the config below `configs` (else its last folder and name), without its
            extension, below `root`: `root`/R-FCN/rfcn_R_101_C5_voc
    """
    parts = Path(config_file).resolve().with_suffix("").parts
    if "configs" in parts[:-1]:
        below = len(parts) - parts[::-1].index("configs")
    else:
        below = -2
    return os.path.join(root, *parts[below:])
