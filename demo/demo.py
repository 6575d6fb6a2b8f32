#!/usr/bin/env python3
"""
Draw what a model finds, objects or the classes of pixels, on images, videos and folders of both.

    python demo/demo.py --config-file configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml \\
        --weights output/demo/model_final.pth --input datasets/digits_coco/test

Several configs with as many weights are drawn side by side, each under its names:

    python demo/demo.py --config-file CONFIG_A CONFIG_B --weights WEIGHTS_A WEIGHTS_B --input ...

An image becomes <name>.png, a video <name>.mp4. Nothing is shown in a window.
"""

import dcn_projects.interrupts  # noqa: F401

# isort: split
from pathlib import Path

from dcn_projects.engine.command_line import ConfigArgumentParser
from dcn_projects.errors import exit_with_one_line


def main():
    parser = ConfigArgumentParser(several=True, description=__doc__)
    parser.add_drawing_flags(output=Path("output/drawn"))
    args = parser.parse_words()
    if args.predict is None:
        parser.error("--input is missing: name images, videos or folders of both")

    # This takes seconds to import, and is not needed to print --help.
    from dcn_projects.engine import draw_predictions

    with exit_with_one_line():
        draw_predictions(
            args.config_files, args.weights, args.predict, args.opts, args.confidence, args.output
        )


if __name__ == "__main__":
    main()
