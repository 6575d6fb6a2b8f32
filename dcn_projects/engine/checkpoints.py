import os
from pathlib import Path

__all__ = ["mirrored_output_dir", "weights_to_evaluate"]


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


def weights_to_evaluate(cfg, iteration: int | None, weights_given: bool) -> str:
    """
    Args:
        iteration: how many iterations the model was trained, None if it is not asked for
        weights_given: MODEL.WEIGHTS is on the command line
    Returns:
        str: path of the checkpoint in OUTPUT_DIR of that iteration, else MODEL.WEIGHTS if it is
            given, else of the last checkpoint in OUTPUT_DIR, else MODEL.WEIGHTS of the config
    Raises:
        ValueError: if two of them are asked for, or there is none
        FileNotFoundError: if there is no checkpoint of that iteration
    """
    folder = Path(cfg.OUTPUT_DIR)
    if iteration is not None:
        if weights_given:
            raise ValueError("--eval-iter and MODEL.WEIGHTS: give one of them")
        return checkpoint_after(folder, iteration, cfg.SOLVER.MAX_ITER)
    last = folder / "last_checkpoint"
    if not weights_given and last.exists():
        return str(folder / last.read_text().strip())
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.WEIGHTS is empty and OUTPUT_DIR {folder} has no checkpoint: name the one to "
            "evaluate"
        )
    return cfg.MODEL.WEIGHTS


def checkpoint_after(folder: Path, iteration: int, max_iter: int) -> str:
    """Arguments of `weights_to_evaluate`; detectron2 counts the iterations of files from 0."""
    names = [f"model_{iteration - 1:07d}.pth"]
    if iteration == max_iter:
        names.append("model_final.pth")
    for name in names:
        if (folder / name).exists():
            return str(folder / name)
    there = sorted(int(p.stem[6:]) + 1 for p in folder.glob("model_[0-9]*.pth"))
    there = [*map(str, there), *(f"{max_iter} (final)" for _ in folder.glob("model_final.pth"))]
    raise FileNotFoundError(
        f"--eval-iter {iteration}: {folder} has no {' or '.join(names)}, only those of iterations "
        f"{', '.join(there) or '(none)'}"
    )
