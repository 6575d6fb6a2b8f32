#!/usr/bin/env python3
"""
Draw the losses of a training and, of Dynamic R-CNN, its IoU threshold and beta over the iterations.

    python tools/plot_training.py output/digits_dynamic_rcnn

reads metrics.json in that folder and writes training.png beside it. Losses are medians of 20
iterations, as in the log. Where a training went on from an earlier checkpoint, or began anew, what
was written of later iterations before is left out.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # needs no display
import matplotlib.pyplot as plt  # noqa: E402

from dcn_projects.errors import exit_with_one_line  # noqa: E402

DYNAMIC = "dynamic_rcnn/"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("--output", type=Path, help="PNG file (OUTPUT_DIR/training.png)")
    return parser.parse_args()


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """
    Returns:
        dict: name -> iteration -> value, in the order of the iterations
    Raises:
        OSError: if the file cannot be read
        ValueError: if it has no losses
    """
    by_iteration, last = {}, -1
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            # After the beginning of a line that a killed training was writing, if there is one.
            entry = json.loads(line[line.rfind("{") :])
        except json.JSONDecodeError as e:
            if number == len(lines):
                break
            raise ValueError(f"{path} line {number} is no JSON: remove it") from e
        if "iteration" not in entry:
            continue
        iteration = entry["iteration"]
        if "total_loss" in entry:
            for abandoned in range(iteration, last + 1):
                by_iteration.pop(abandoned, None)
            last = iteration
        by_iteration.setdefault(iteration, {}).update(entry)
    curves = {}
    for iteration, entry in sorted(by_iteration.items()):
        for name, value in entry.items():
            curves.setdefault(name, {})[iteration] = value
    if "total_loss" not in curves:
        raise ValueError(f"{path} has no losses: is it of a training that began?")
    return curves


def draw(curves: dict[str, dict[int, float]]):
    """A panel of losses, one of thresholds and one of betas, if there are some."""
    panels = {"loss": sorted(name for name in curves if "loss" in name)}
    for number in ("iou_threshold", "beta"):
        names = sorted(name for name in curves if name.startswith(DYNAMIC + number))
        panels |= {number.replace("_", " "): names} if names else {}
    figure, axes = plt.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(8, 3 * len(panels)), layout="constrained"
    )
    for axis, (title, names) in zip(axes[:, 0], panels.items()):
        for name in names:
            axis.plot(*zip(*curves[name].items()), label=name.removeprefix(DYNAMIC))
        axis.set_ylabel(title)
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("iteration")
    return figure


def main(args):
    output = args.output or args.folder / "training.png"
    draw(read_metrics(args.folder / "metrics.json")).savefig(output, dpi=120)
    print(f"wrote {output}")


if __name__ == "__main__":
    args = parse_arguments()
    with exit_with_one_line():
        main(args)
