import zipfile

from iopath.common.file_io import g_pathmgr

__all__ = ["check_weights"]


def check_weights(path: str) -> None:
    """
    Find out before a model is built whether its weights can be read. Names that begin with a
    scheme (`detectron2://`, `https://`) are left to detectron2, which downloads them.

    Args:
        path: value of MODEL.WEIGHTS; empty means random weights
    Raises:
        FileNotFoundError: if there is no such file
        OSError: if a .pth file was cut off or is none
    """
    if not path or "://" in path:
        return
    if not g_pathmgr.isfile(path):
        raise FileNotFoundError(
            f"MODEL.WEIGHTS: {path} does not exist. Give the path of a checkpoint, "
            "or '' to start from random weights."
        )
    if path.endswith(".pth") and not zipfile.is_zipfile(path):
        with open(path, "rb") as f:
            start = f.read(2)
        # Checkpoints of torch < 1.6 are a bare pickle, which begins with its protocol.
        if start != b"\x80\x02":
            what = "is cut off" if start == b"PK" else "is not a checkpoint"
            raise OSError(f"MODEL.WEIGHTS: {path} {what}. Copy it again, or use an earlier one.")
