import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .command_line import ConfigArgumentParser
from .output_dir import mirrored_output_dir

__all__ = ["parse_arguments"]

_EPILOG = """
Options of the config are written KEY=VALUE or KEY VALUE, before or after the flags:

  train_net.py --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH=8 SOLVER.BASE_LR 0.01
  train_net.py --config-file FILE --load model.pth --evaluate detections.json
  train_net.py --config-file FILE --load model.pth --predict a.jpg b.jpg

--predict writes output.png, or <name>_pred.png for each of several images. Several models are drawn
side by side: --config-file A --load a.pth --config-file B --load b.pth --predict ...
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    detectron2's command line, with that of tensorpack's FasterRCNN beside it. Flags count wherever
    they stand, and only when they are written in full. Mistakes end the program with a message.
    Neither torch nor detectron2 is imported for it.

    Args:
        argv: words of the command line; None means those of this program
    Returns:
        Namespace: that of detectron2's `default_argument_parser`, with what `ConfigArgumentParser`
            adds. `opts` has all options of the config; `eval_only` is also set by `--evaluate`.
            Besides, `predict` is a list of paths or None, `confidence` a float, `output` a folder
            or None, `evaluate` a path or None
    """
    parser = _parser()
    args = parser.parse_words(argv)
    args.eval_only |= args.eval_iter is not None
    if args.predict is not None and (args.evaluate or args.eval_only or args.resume):
        parser.error("--predict goes with none of --evaluate, --eval-*, --resume")
    if args.output and args.predict is None:
        parser.error("--output goes with --predict. For training and evaluation set OUTPUT_DIR")
    if args.evaluate:
        if args.evaluate.suffix != ".json":
            parser.error(f"--evaluate {args.evaluate}: the name of the file must end in .json")
        if not args.evaluate.parent.is_dir():
            parser.error(f"--evaluate {args.evaluate}: there is no folder {args.evaluate.parent}")
        if args.evaluate.is_dir():
            parser.error(f"--evaluate {args.evaluate}: it is a folder")
        args.eval_only = True
    if args.output_root:  # an OUTPUT_DIR on the command line comes later, and counts
        output_dir = mirrored_output_dir(args.output_root, args.config_file)
        args.opts = ["OUTPUT_DIR", output_dir, *args.opts]
    return args


def _parser() -> ConfigArgumentParser:
    parser = ConfigArgumentParser(epilog=_EPILOG)
    # What detectron2's default_argument_parser has besides
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate, without training")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs per machine (1)")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines (1)")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="index of this machine, from 0 (0)"
    )
    # A port of its own for each user that is the same every time: processes that were left behind
    # by an earlier run are noticed, since they hold it.
    user = 1 if sys.platform == "win32" else os.getuid()
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{2**15 + 2**14 + hash(user) % 2**14}",
        metavar="URL",
        help="where the processes meet, as torch.distributed takes it (%(default)s)",
    )
    parser.add_argument(
        "--eval-iter",
        "-i",
        type=int,
        metavar="N",
        help="evaluate the checkpoint in OUTPUT_DIR after N iterations; --eval-only without this "
        "and without MODEL.WEIGHTS takes the last one",
    )
    parser.add_argument(
        "--output-root",
        metavar="FOLDER",
        help="OUTPUT_DIR is the config's path below configs/, in this folder",
    )
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="FILE.json",
        help="evaluate only, and write the detections in the format of COCO's results",
    )
    parser.add_drawing_flags()
    return parser
