#!/usr/bin/env python3
"""
Make the "warped digits" data set: handwritten digits, deformed and overlapping, on photographs.

    python tools/make_dataset.py --format coco

writes 2,000 training and 200 test images to datasets/digits_coco, where `digits_coco_train` and
`digits_coco_test` are registered. A data set that is complete is not made again. `--hard` deforms
the digits twice as much; its data set is `digits_coco_hard`.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
import argparse
import os

from dcn_projects.data.datasets.builtin import ROOT
from dcn_projects.data.datasets.warped_digits import make_dataset
from dcn_projects.errors import exit_with_one_line


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("coco", "voc", "cityscapes"), default="coco")
    parser.add_argument(
        "--output",
        help=f"folder; {os.path.join(ROOT, 'digits_<format>')}, or ..._hard, if not given",
    )
    parser.add_argument("--hard", action="store_true", help="deform the digits twice as much")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels (192)")
    parser.add_argument("--count-train", type=int, default=2000, help="training images (2000)")
    parser.add_argument("--count-test", type=int, default=200, help="test images (200)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same files (0)")
    parser.add_argument(
        "--masks",
        choices=("polygon", "rle"),
        default="polygon",
        help="in the COCO layout (polygon)",
    )
    args = vars(parser.parse_args())
    hard = args.pop("hard")
    folder = f"digits_{args['format']}" + ("_hard" if hard else "")
    args["output"] = args["output"] or os.path.join(ROOT, folder)
    args["warp"] = 2.0 if hard else 1.0
    with exit_with_one_line():
        made = make_dataset(**args)
    print(f"{args['output']} is complete" if made else f"{args['output']} was complete already")


if __name__ == "__main__":
    main()
