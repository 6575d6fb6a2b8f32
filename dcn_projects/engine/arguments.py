import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import default_argument_parser

from .options import is_key, is_option
from .output_dir import mirrored_output_dir

__all__ = ["parse_arguments"]

_EPILOG = """
Options of the config are written KEY=VALUE or KEY VALUE, before or after the flags:

  train_net.py --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH=8 SOLVER.BASE_LR 0.01
  train_net.py --config-file FILE --load model.pth --evaluate detections.json
  train_net.py --config-file FILE --load model.pth --predict a.jpg b.jpg
"""
# Flags of tensorpack: what to give here
_TENSORPACK_FLAGS = {"--logdir": "OUTPUT_DIR=FOLDER", "--gpu": "CUDA_VISIBLE_DEVICES"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """
    detectron2's command line, with that of tensorpack's FasterRCNN beside it. Flags count wherever
    they stand, and only when they are written in full. Mistakes end the program with a message.

    Args:
        argv: words of the command line; None means those of this program
    Returns:
        Namespace: that of `default_argument_parser`. `opts` has all options of the config, also
        those of `--config` and `--load`; `eval_only` is also set by `--evaluate`. Besides,
        `predict` is a list of paths or None, `confidence` a float, `evaluate` a path or None
    """
    parser = _parser()
    words = _join_negative(parser, sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        parser.error(_about_unknown(parser, unknown[0]))
    if not args.config_file:
        parser.error("--config-file is missing: name one of configs/*/*.yaml")
    args.eval_only |= args.eval_iter is not None
    for first, *_ in filter(None, args.config):
        if first.endswith((".yaml", ".yml")):
            parser.error(f"--config takes KEY=VALUE, got {first}. For a file write --config-file")
    if args.predict is not None:
        images, behind = zip(*map(_split, args.predict))
        args.predict, args.opts = sum(images, []), sum(behind, []) + args.opts
        if not all(images):
            parser.error("--predict: name at least one image")
        if args.evaluate or args.eval_only or args.resume:
            parser.error("--predict goes with none of --evaluate, --eval-*, --resume")
    args.opts = sum(args.config, []) + args.opts
    if args.load:
        if any(word.partition("=")[0] == "MODEL.WEIGHTS" for word in args.opts):
            parser.error("--load and MODEL.WEIGHTS both name the weights: keep one")
        args.opts = ["MODEL.WEIGHTS", args.load, *args.opts]
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


def _parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=_EPILOG)
    parser.allow_abbrev = False
    # It takes all that follows the first option, flags included, unless it is one of many words.
    opts = next(action for action in parser._actions if action.dest == "opts")
    opts.nargs, opts.metavar = "*", "KEY=VALUE"
    opts.help = "options that override the config, also KEY VALUE"
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
    parser.add_argument("--load", metavar="FILE", help="weights, as MODEL.WEIGHTS")
    parser.add_argument(
        "--predict",
        action="append",
        nargs="*",
        metavar="IMAGE",
        help="draw what the model detects into output.png, or <name>_pred.png of each of several",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.5, help="least score that --predict draws (0.5)"
    )
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="FILE.json",
        help="evaluate only, and write the detections in the format of COCO's results",
    )
    # An option of its own: tensorpack's users write it, and it begins like --config-file.
    parser.add_argument(
        "--config",
        action="append",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="the same options",
    )
    return parser


def _join_negative(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """KEY -VALUE becomes KEY=-VALUE: the value could be a flag, as -inf is -i with the value nf."""
    words = []
    for word in argv:
        is_flag = word.startswith("--") or word in parser._option_string_actions
        if words and is_key(words[-1]) and word.startswith("-") and not is_flag:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Images, and the options that follow them."""
    for i, word in enumerate(words):
        if is_option(word) and not Path(word).exists():
            return words[:i], words[i:]
    return words, []


def _about_unknown(parser: argparse.ArgumentParser, word: str) -> str:
    flag = word.partition("=")[0]
    if flag in _TENSORPACK_FLAGS:
        return f"{flag} of tensorpack is {_TENSORPACK_FLAGS[flag]} here"
    flags = [s for action in parser._actions for s in action.option_strings]
    close = [s for s in flags if s.startswith(flag) and flag != "--"]
    if close:
        return f"{flag}: flags are not abbreviated, write {' or '.join(close)}"
    return f"there is no flag {flag} (a value that begins with - is written KEY=VALUE)"
