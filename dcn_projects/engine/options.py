"""Options of the config on a command line, written KEY VALUE or KEY=VALUE."""

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from yacs.config import CfgNode  # that of detectron2 is one, and detectron2 takes long to import

from dcn_projects.config_keys import leaves, value_of
from dcn_projects.config_renames import rename_option
from dcn_projects.errors import one_line

__all__ = [
    "TENSORPACK_KEYS",
    "check_literals",
    "is_key",
    "is_option",
    "merge_options",
    "option_pairs",
]

# Key of tensorpack's FasterRCNN: what to give here. Some units differ, so nothing is translated.
TENSORPACK_KEYS = {
    "MODE_MASK": "MODEL.MASK_ON",
    "MODE_FPN": "another --config-file: *_C4_* or *_FPN_*",
    "DATA.BASEDIR": "the environment variable DETECTRON2_DATASETS, the folder that holds coco/",
    "DATA.TRAIN": "DATASETS.TRAIN, such as ('coco_2017_train',)",
    "DATA.VAL": "DATASETS.TEST, such as ('coco_2017_val',)",
    "DATA.NUM_WORKERS": "DATALOADER.NUM_WORKERS, per GPU",
    "BACKBONE.WEIGHTS": "MODEL.WEIGHTS",
    "BACKBONE.RESNET_NUM_BLOCKS": "MODEL.RESNETS.DEPTH, such as 101",
    "BACKBONE.NORM": "MODEL.RESNETS.NORM (FreezeBN is FrozenBN)",
    "BACKBONE.FREEZE_AT": "MODEL.BACKBONE.FREEZE_AT",
    "BACKBONE.STRIDE_1X1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "FPN.NORM": "MODEL.FPN.NORM",
    "FPN.FRCNN_HEAD_FUNC": "MODEL.ROI_BOX_HEAD.NUM_CONV, NUM_FC and NORM",
    "FPN.MRCNN_HEAD_FUNC": "MODEL.ROI_MASK_HEAD.NORM",
    "FPN.CASCADE": "MODEL.ROI_HEADS.NAME=CascadeROIHeads "
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG=True",
    "TRAIN.BASE_LR": "SOLVER.BASE_LR, for the whole batch (per 8 images in tensorpack)",
    "TRAIN.LR_SCHEDULE": "SOLVER.STEPS and SOLVER.MAX_ITER (iterations of 8 images in tensorpack)",
    "TRAIN.WARMUP": "SOLVER.WARMUP_ITERS",
    "TRAIN.WARMUP_INIT_LR": "SOLVER.WARMUP_FACTOR, a factor of SOLVER.BASE_LR",
    "TRAIN.EVAL_PERIOD": "TEST.EVAL_PERIOD, in iterations (times 500 in tensorpack)",
    "TRAIN.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_PERIOD, in iterations (times 500 in tensorpack)",
    "TRAIN.NUM_GPUS": "--num-gpus",
    "TRAINER": "--num-gpus and --num-machines",
    "PREPROC.TRAIN_SHORT_EDGE_SIZE": "INPUT.MIN_SIZE_TRAIN; a range with "
    "INPUT.MIN_SIZE_TRAIN_SAMPLING=range",
    "PREPROC.SHORT_EDGE_SIZE": "INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST",
    "PREPROC.TEST_SHORT_EDGE_SIZE": "INPUT.MIN_SIZE_TEST",
    "PREPROC.MAX_SIZE": "INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST",
    "PREPROC.PIXEL_MEAN": "MODEL.PIXEL_MEAN, in the order of INPUT.FORMAT (RGB in tensorpack)",
    "PREPROC.PIXEL_STD": "MODEL.PIXEL_STD, in the order of INPUT.FORMAT (RGB in tensorpack)",
    "FRCNN.BATCH_PER_IM": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "FRCNN.BBOX_REG_WEIGHTS": "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    "RPN.TRAIN_PER_LEVEL_NMS_TOPK": "MODEL.RPN.PRE_NMS_TOPK_TRAIN and POST_NMS_TOPK_TRAIN",
    "TEST.RESULT_SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "TEST.FRCNN_NMS_THRESH": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "TEST.RESULTS_PER_IM": "TEST.DETECTIONS_PER_IMAGE",
}
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
_NEAR = 0.66  # of difflib: BASE_LR is near SOLVER.BASE_LR, FPN.PROPOSAL_MODE of tensorpack no key


def option_pairs(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """
    Args:
        words: of a command line. "A.B=1" is one option, "A.B", "1" as well. Only the first "=" of a
            word divides, and the word after a key without one is its value, whatever it contains
    Returns:
        Iterator: keys and values
    Raises:
        ValueError: if the last key has no value
    """
    words = iter(words)
    for word in words:
        key, equals, value = str(word).partition("=")
        if not equals:
            value = next(words, None)
            if value is None:
                raise ValueError(f"{key} has no value: write {key}=VALUE")
        yield key, value


def merge_options(cfg: CfgNode, opts: Iterable[str]) -> list[str]:
    """
    Args:
        cfg: changed in place
        opts: see `option_pairs`. Keys of version 0.1 are translated
    Returns:
        list: what was renamed
    Raises:
        ValueError: for a key that does not exist, has no value or one of the wrong type
    """
    renamed = []
    for key, text in option_pairs(opts):
        key, text, names = rename_option(cfg, key, text)
        renamed += names
        old = _find(cfg, key)
        try:
            literal = _literal(text)
            is_whole = isinstance(old, float) and type(literal) is int
            cfg.merge_from_list([key, float(literal) if is_whole else text])
        except (ValueError, AssertionError, OverflowError) as e:
            expected = type(old).__name__
            raise ValueError(f"{key}={text}: expected a {expected}, such as {old!r}") from e
    return renamed


def is_key(word: str) -> bool:
    """Whether a word of a command line looks like a key, known or not."""
    return bool(_KEY.fullmatch(word))


def is_option(word: str) -> bool:
    """
    Whether a word of a command line is KEY=VALUE, or names a key or a group of keys, of detectron2,
    of ours or of tensorpack.
    """
    key, equals, _ = word.partition("=")
    if not is_key(key) or equals:
        return is_key(key)
    from detectron2.config import get_cfg  # imports torch, which --help does not need

    group = key.partition(".")[0]
    return group in get_cfg() or any(group == name.partition(".")[0] for name in TENSORPACK_KEYS)


def _find(cfg: CfgNode, key: str):
    """The value that a key has."""
    try:
        value = value_of(cfg, key)
    except KeyError:
        raise ValueError(_unknown(cfg, key)) from None
    if isinstance(value, CfgNode):
        raise ValueError(f"{key} is a group of keys: {', '.join(value)}")
    return value


def _unknown(cfg: CfgNode, key: str) -> str:
    if key in TENSORPACK_KEYS:
        return f"{key} is a key of tensorpack. Here it is {TENSORPACK_KEYS[key]}"
    keys = [name for name, _ in leaves(cfg)]
    close = difflib.get_close_matches(key.upper(), keys, n=1, cutoff=_NEAR)
    return f"there is no key {key}" + "".join(f"; the nearest is {name}" for name in close)


def check_literals(raw: Mapping) -> None:
    """
    Args:
        raw: a config file as YAML has it, in which texts may be literals of Python
    Raises:
        ValueError: if a text is a literal that Python cannot make; it names the key
    """
    for key, value in leaves(raw):
        if isinstance(value, str):
            try:
                _literal(value)
            except ValueError as e:
                raise ValueError(f"{key}: {e}") from None


def _literal(text: str):
    """
    A Python literal, or the text itself, as yacs reads the values of a command line.

    Raises:
        ValueError: for a literal that Python cannot make, where yacs raises anything
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    except (MemoryError, RecursionError, TypeError) as e:  # (((((( or {[1]: 2}
        raise ValueError(f"{text[:40]!r} cannot be a value ({one_line(e)})") from None
