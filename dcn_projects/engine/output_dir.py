import os
import re
from pathlib import Path

__all__ = [
    "how_to_go_on",
    "last_checkpoint",
    "last_saved",
    "mirrored_output_dir",
    "weights_to_evaluate",
]


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
        return str(checkpoint_after(folder, iteration))
    last = None if weights_given else last_checkpoint(folder)
    if last is not None:
        return str(last)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"MODEL.WEIGHTS is empty and OUTPUT_DIR {folder} has no checkpoint: name one with "
            "--load FILE or MODEL.WEIGHTS"
        )
    return cfg.MODEL.WEIGHTS


def numbered(folder: Path) -> dict[int, Path]:
    """Iterations done -> checkpoint. detectron2 counts those in the names from 0."""
    matches = [(p, re.fullmatch(r"model_(\d+)\.pth", p.name)) for p in folder.glob("model_*.pth")]
    return {int(match[1]) + 1: path for path, match in sorted(matches) if match}


def last_checkpoint(folder: Path) -> Path | None:
    """
    The checkpoint that the file `last_checkpoint` in a folder names; None if there is no such file.
    If the checkpoint does not exist, as after a crash while the file was written, the newest one is
    used, and the file is changed to name it.

    Raises:
        FileNotFoundError: if the folder has no checkpoint
    """
    named_by = folder / "last_checkpoint"
    if not named_by.exists():
        return None
    name = named_by.read_text(errors="replace").strip()
    if name and (folder / name).is_file():
        return folder / name
    there = numbered(folder)
    if not there:
        raise FileNotFoundError(
            f"{named_by} names {name or 'nothing'}, which does not exist: delete {named_by.name}"
        )
    newest = there[max(there)]
    print(f"{named_by} names {name or 'nothing'}, which does not exist: {newest.name} is used.")
    part = folder / f"last_checkpoint.{os.getpid()}"  # several processes may do this at a time
    part.write_text(newest.name)
    part.replace(named_by)
    return newest


def checkpoint_after(folder: Path, iteration: int) -> Path:
    """As `weights_to_evaluate`. The final one has its iteration inside."""
    there = numbered(folder)
    final = folder / "model_final.pth"
    if iteration not in there and final.exists():
        import torch  # not at the top: --help imports this module and needs no torch

        from dcn_projects.checkpoint import check_weights

        check_weights(str(final), "--eval-iter")
        content = torch.load(final, map_location="cpu", mmap=True, weights_only=True)
        there[content.get("iteration", -1) + 1] = final
    if iteration not in there:
        names = [f"{n} (final)" if path == final else str(n) for n, path in sorted(there.items())]
        raise FileNotFoundError(
            f"--eval-iter {iteration}: {folder} has only checkpoints of iterations "
            f"{', '.join(names) or '(none)'}"
        )
    return there[iteration]


def last_saved(folder: Path) -> int | None:
    """When the last checkpoint in OUTPUT_DIR was saved, in nanoseconds; None without one."""
    named_by = folder / "last_checkpoint"
    return named_by.stat().st_mtime_ns if named_by.exists() else None


def how_to_go_on(folder: Path, resumed: bool, saved_before: int | None) -> str:
    """
    What the user of a training that was interrupted can do.

    Args:
        folder: OUTPUT_DIR
        resumed: the training went on with what is there
        saved_before: what `last_saved` was when it began
    """
    saved = last_saved(folder)
    if saved is None or saved == saved_before and not resumed:
        return "No checkpoint of this training is there yet: begin it anew"
    name = (folder / "last_checkpoint").read_text(errors="replace").strip()
    return f"The last checkpoint is {folder / name}: go on with --resume"
