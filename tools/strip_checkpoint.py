#!/usr/bin/env python3
"""
Make of a checkpoint the file to publish: the weights alone.

    python tools/strip_checkpoint.py output/model_final.pth detector.pth

leaves out optimizer, schedule and iteration, and what only training reads: the thresholds of
Dynamic R-CNN and the classifier of mimicked patches. The result is evaluated and drawn as before,
and also loads into the model without these parts.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
from collections.abc import Mapping
from pathlib import Path

import torch

from dcn_projects.checkpoint import (
    check_weights,
    not_finite,
    read_checkpoint,
    training_only_entries,
)
from dcn_projects.errors import exit_with_one_line
from dcn_projects.whole_files import whole_file


def strip(source: Path, output: Path) -> None:
    """
    Raises:
        OSError: if the source cannot be read, or the output not be written
        ValueError: if the source is no checkpoint of a detectron2 training
    """
    if not source.is_file():  # what check_weights advises is for trainings
        raise FileNotFoundError(f"{source} does not exist")
    check_weights(str(source), "the checkpoint")
    if source.suffix != ".pth" or output.suffix != ".pth":
        raise ValueError("both files must be .pth")
    if source.resolve() == output.resolve():
        raise ValueError("the output would replace the checkpoint: give it another name")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent}")
    content = read_checkpoint(source)
    weights = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{source} holds no parameters with names")
    left_out = training_only_entries(content)
    kept = {name: value for name, value in weights.items() if name not in left_out}
    if name := not_finite(kept):
        raise ValueError(f"{source} has values in {name} that are not finite")
    with whole_file(output) as file:
        torch.save({"model": kept}, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="checkpoint of a training")
    parser.add_argument("output", type=Path, help="file to write")
    args = parser.parse_args()
    with exit_with_one_line():
        strip(args.source, args.output)
    before, after = (path.stat().st_size / 2**20 for path in (args.source, args.output))
    print(f"wrote {args.output}: {after:.1f} MB of {before:.1f}")


if __name__ == "__main__":
    main()
