"""The command lines of all programs that take a config: its options, weights and pictures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcn_projects.config_files import resolve_config_file

from .options import is_key, is_option

__all__ = ["ConfigArgumentParser"]

# Flags of tensorpack: what to give here
_TENSORPACK_FLAGS = {"--logdir": "OUTPUT_DIR=FOLDER", "--gpu": "CUDA_VISIBLE_DEVICES"}


class ConfigArgumentParser(argparse.ArgumentParser):
    """
    A parser that has `--config-file` and `--load`, and takes options of the config as KEY=VALUE or
    KEY VALUE. Flags count wherever they stand, and only when they are written in full. An option of
    several names has those of tensorpack, of detectron2 and of this project, in all programs.
    """

    def __init__(self, several: bool = False, **kwargs):
        """
        Args:
            several: a flag takes several configs and weights. What follows them and is an option of
                the config then counts as one
        """
        self._flags, self._several = [], several
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=formatter, **kwargs)
        # As appended words flags may be repeated.
        many = {"action": "append", "nargs": "+" if several else None, "default": []}
        self.add_argument(
            "--config-file",
            metavar="FILE",
            help="config, or its name below configs/, such as R-FCN/rfcn_R_101_C5_voc.yaml",
            **many,
        )
        self.add_argument(
            "--load", "--weights", metavar="FILE", help="weights, as MODEL.WEIGHTS", **many
        )
        self.add_argument(
            "--config",
            "--opts",
            action="append",
            nargs="*",
            default=[],
            metavar="KEY=VALUE",
            help="the same as without a flag",
        )
        self.add_argument(
            "opts",
            nargs="*",
            metavar="KEY=VALUE",
            help="options that override the config, also KEY VALUE",
        )

    def add_drawing_flags(self, nargs: str | None = "*", output: Path | None = None) -> None:
        """
        Args:
            nargs: of the flag that names images, as in argparse
            output: folder of the pictures where none is given
        """
        self.add_argument(
            "--predict",
            "--input",
            "--image",
            action="append",
            nargs=nargs,
            metavar="IMAGE",
            help="image"
            if nargs is None
            else "images, videos, and folders of both, on which is drawn what the model finds",
        )
        self.add_argument(
            "--confidence",
            "--confidence-threshold",
            "--score-threshold",
            type=float,
            default=0.5,
            metavar="SCORE",
            help="least score of detections that are drawn (0.5)",
        )
        where = f"folder of the pictures ({output or 'the current one'})"
        self.add_argument("--output", type=Path, default=output, metavar="FOLDER", help=where)

    def add_argument(self, *names, **kwargs):
        self._flags += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **kwargs)

    def parse_words(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """
        Mistakes end the program with a message.

        Args:
            argv: words of the command line; None means those of this program
        Returns:
            Namespace: `config_files` and `weights` are lists of paths, `config_file` is the last of
                the configs, `opts` has all options of the config, also those of `--config` and a
                single `--load`. Where there are the flags of drawing, `predict` is a list of paths
                or None
        """
        words = self._join_negative(sys.argv[1:] if argv is None else argv)
        args, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            self.error(self._about_unknown(unknown[0]))
        for first, *_ in filter(None, args.config):
            if first.endswith((".yaml", ".yml")):
                self.error(f"--config takes KEY=VALUE, got {first}. For a file write --config-file")
        args.config_files, behind_configs = self._files(args.config_file)
        args.weights, behind_weights = self._files(args.load)
        behind_images = []
        if getattr(args, "predict", None) is not None:
            args.predict, behind_images = self._images(args.predict)
        if not args.config_files:
            self.error(
                "--config-file is missing: name one of configs/*/*.yaml, or its path below configs/"
            )
        args.config_files = [_find(name) for name in args.config_files]
        args.config_file = args.config_files[-1]
        behind = behind_configs + behind_weights + behind_images
        args.opts = sum(args.config, []) + behind + args.opts
        is_drawing = getattr(args, "predict", None) is not None
        if not is_drawing:  # one model, whose last name counts, as everywhere in argparse
            args.weights = args.weights[-1:]
        if args.weights:
            if any(word.partition("=")[0] == "MODEL.WEIGHTS" for word in args.opts):
                self.error("--load and MODEL.WEIGHTS both name the weights: keep one")
            if len(args.weights) == 1:
                args.opts = ["MODEL.WEIGHTS", *args.weights, *args.opts]
        return args

    def _files(self, found: list) -> tuple[list[str], list[str]]:
        """Configs or weights, and the options that follow them."""
        if not self._several:
            return found, []
        files, behind = zip(*map(_split, found)) if found else ((), ())
        return sum(files, []), sum(behind, [])

    def _images(self, found: list) -> tuple[list[str], list[str]]:
        if isinstance(found[0], str):
            return found, []
        images, behind = zip(*map(_split, found))
        if not all(images):
            self.error("--predict: name at least one image")
        return sum(images, []), sum(behind, [])

    def _join_negative(self, argv: Sequence[str]) -> list[str]:
        """KEY -VALUE becomes KEY=-VALUE: the value could be a flag, as -inf is -i with value nf."""
        words = []
        for word in argv:
            is_flag = word.startswith("--") or word in self._flags
            if words and is_key(words[-1]) and word.startswith("-") and not is_flag:
                words[-1] += f"={word}"
            else:
                words.append(word)
        return words

    def _about_unknown(self, word: str) -> str:
        flag = word.partition("=")[0]
        if flag in _TENSORPACK_FLAGS:
            return f"{flag} of tensorpack is {_TENSORPACK_FLAGS[flag]} here"
        close = [s for s in self._flags if s.startswith(flag) and flag != "--"]
        if close:
            return f"{flag}: flags are not abbreviated, write {' or '.join(close)}"
        return f"there is no flag {flag} (a value that begins with - is written KEY=VALUE)"


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of files, and the options of the config that follow them."""
    for i, word in enumerate(words):
        if is_option(word) and not Path(word).exists():
            return words[:i], words[i:]
    return words, []


def _find(config_file: str) -> str:
    """The path of a config, given by its path or name. One that does not exist is unchanged."""
    try:
        return resolve_config_file(config_file)
    except FileNotFoundError:  # read_config reports the missing file
        return config_file
