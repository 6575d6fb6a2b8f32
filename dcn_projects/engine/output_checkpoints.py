"""Which checkpoint of OUTPUT_DIR is used, and what a folder is like after an interruption."""

import itertools
import os
import re
from pathlib import Path

from dcn_projects.checkpoint import check_weights, read_checkpoint
from dcn_projects.whole_files import PART, sync_folder, whole_file

__all__ = [
    "checkpoint_to_resume",
    "how_to_go_on",
    "last_checkpoint",
    "last_saved",
    "remove_parts",
    "set_aside",
    "weights_to_evaluate",
]


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
    The checkpoint that the file `last_checkpoint` in a folder names; None if the folder has
    neither. Where the file is missing or names nothing that exists, as after a crash while it was
    written, the newest checkpoint is taken.

    Raises:
        FileNotFoundError: if the file names a checkpoint, and there is none
    """
    name = _named(folder)
    if name and _is_file(folder / name):
        return folder / name
    named_by = folder / "last_checkpoint"
    newest = next(iter(_newest_first(folder)), None)
    if newest is not None:
        print(f"{named_by} {_names_nothing(name)}: {newest.name}, the newest, is used.")
    elif name is not None:
        raise FileNotFoundError(f"{named_by} {_names_nothing(name)}: delete {named_by.name}")
    return newest


def checkpoint_to_resume(folder: Path) -> Path | None:
    """
    As `last_checkpoint`. If that one is damaged, the newest is taken that is not. The file names it
    then, as detectron2 reads it.

    Raises:
        FileNotFoundError: if the file names a checkpoint, and there is none
        OSError: if all are damaged; one line that names the last one
    """
    last = last_checkpoint(folder)
    if last is None:
        return None
    chosen, damage = last, _damage(last)
    if damage:
        others = [path for path in _newest_first(folder) if path != last]
        chosen = next((path for path in others if not _damage(path)), None)
        if chosen is None:
            more = " No other checkpoint there can be read." if others else ""
            raise OSError(f"--resume: {damage}{more} Without --resume a training begins anew.")
        print(f"{damage} {chosen.name} is used instead.")
    name = _named(folder)
    if not name or folder / name != chosen:
        with whole_file(folder / "last_checkpoint", "w") as f:
            f.write(chosen.name)
    return chosen


def _damage(checkpoint: Path) -> str:
    """What is wrong with it, in a sentence; '' if nothing is."""
    try:
        check_weights(str(checkpoint), told_by="")
    except OSError as e:
        return str(e).removeprefix(": ")
    return ""


def _named(folder: Path) -> str | None:
    """What the file last_checkpoint says; None if there is no such file."""
    path = folder / "last_checkpoint"
    # A power cut can leave zeros.
    return path.read_text(errors="replace").strip(" \n\0") if path.exists() else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # what a damaged file says may not even be a name
        return False


def _names_nothing(name: str | None) -> str:
    if name is None:
        return "does not exist"
    return f"names {name or 'nothing'}, which does not exist"


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a training, by the iterations that were done."""
    there = numbered(folder)
    final = folder / "model_final.pth"
    if final.exists():
        done = iterations_in(final)
        # A final one that cannot be read is named as the newest, and not left out in silence.
        there = {**there, max(there, default=0) + 1 if done is None else done: final}
    return [there[done] for done in sorted(there, reverse=True)]


def iterations_in(path: Path) -> int | None:
    """How many iterations the training of a checkpoint had done; None if it does not tell."""
    try:
        content = read_checkpoint(path)
    except (OSError, ValueError):
        return None
    last = content.get("iteration") if isinstance(content, dict) else None
    return last + 1 if isinstance(last, int) else None


def checkpoint_after(folder: Path, iteration: int) -> Path:
    """As `weights_to_evaluate`. The final one has its iteration inside."""
    there = numbered(folder)
    final = folder / "model_final.pth"
    if iteration not in there and final.exists():
        check_weights(str(final), "--eval-iter")
        there[iterations_in(final) or 0] = final
    if iteration not in there:
        names = [f"{n} (final)" if path == final else str(n) for n, path in sorted(there.items())]
        raise FileNotFoundError(
            f"--eval-iter {iteration}: {folder} has only checkpoints of iterations "
            f"{', '.join(names) or '(none)'}"
        )
    return there[iteration]


def set_aside(folder: Path) -> Path | None:
    """
    Make room for a new training.

    Returns:
        the folder below it where the checkpoints of another one are from now on; None if there
        were none
    """
    (folder / "last_checkpoint").unlink(missing_ok=True)
    old = list(folder.glob("model_*.pth"))
    if not old:
        return None
    target = next(t for n in itertools.count(1) if not (t := folder / f"previous-{n}").exists())
    target.mkdir()
    for path in sorted(old):
        path.rename(target / path.name)
    sync_folder(target)
    sync_folder(folder)
    return target


def remove_parts(folder: Path) -> None:
    """Remove what processes have left that were killed while they wrote a file."""
    for part in folder.glob(f"*.*{PART}"):
        number = part.name.split(".")[-2]
        if number.isdecimal() and not _is_another(int(number)):
            part.unlink(missing_ok=True)


def _is_another(process: int) -> bool:
    """Whether another process has this number now."""
    try:
        os.kill(process, 0)
    except (OSError, OverflowError):
        return False
    return process != os.getpid()


def last_saved(folder: Path) -> int | None:
    """When the last checkpoint in OUTPUT_DIR was saved, in nanoseconds; None without one."""
    named_by = folder / "last_checkpoint"
    return named_by.stat().st_mtime_ns if named_by.exists() else None


def how_to_go_on(folder: Path, resumed: bool, saved_before: int | None = None) -> str:
    """
    What the user of a training that was interrupted can do.

    Args:
        folder: OUTPUT_DIR
        resumed: what is there is of this training, or it went on with it
        saved_before: what `last_saved` was when it began
    """
    saved, name = last_saved(folder), _named(folder)
    if not name or not _is_file(folder / name) or saved == saved_before and not resumed:
        return "No checkpoint of this training is there yet: begin it anew"
    return f"The last checkpoint is {folder / name}: go on with --resume"
