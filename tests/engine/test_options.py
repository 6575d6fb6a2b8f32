import pytest
from detectron2.config import get_cfg

from dcn_projects import add_dcn_config
from dcn_projects.engine.options import TENSORPACK_KEYS, is_option, merge_options


def config():
    cfg = get_cfg()
    add_dcn_config(cfg)
    return cfg


def test_both_spellings():
    cfg = config()
    words = "SOLVER.BASE_LR=0.1 MODEL.DEVICE cpu SOLVER.STEPS=(10,20) MODEL.PIXEL_STD [1.0,2,3]"
    merge_options(cfg, [*words.split(), "DATASETS.TEST", "('a b',)", "MODEL.MASK_ON=True"])
    assert cfg.SOLVER.BASE_LR == 0.1 and cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.MASK_ON is True
    assert cfg.SOLVER.STEPS == (10, 20) and cfg.MODEL.PIXEL_STD == [1.0, 2, 3]
    assert cfg.DATASETS.TEST == ("a b",)


@pytest.mark.parametrize(
    "words,value",
    [
        (["OUTPUT_DIR=a=b"], "a=b"),
        (["OUTPUT_DIR", "SEED=3"], "SEED=3"),  # a value, as it follows a key
        (["OUTPUT_DIR="], ""),
        (["OUTPUT_DIR=a", "OUTPUT_DIR", "b"], "b"),
    ],
)
def test_equals_signs(words, value):
    cfg = config()
    merge_options(cfg, words)
    assert cfg.OUTPUT_DIR == value and cfg.SEED == -1


def test_whole_number_for_a_fraction():
    cfg = config()
    merge_options(cfg, ["SOLVER.BASE_LR", "1"])
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)


@pytest.mark.parametrize(
    "words,named",
    [
        ("SOLVER.BASE_LR.X=1", ["no key SOLVER.BASE_LR.X; the nearest is SOLVER.BASE_LR"]),
        ("SOLVER=1", ["SOLVER is a group", "BASE_LR"]),
        ("SEED=3 SOLVER.BASE_LR", ["SOLVER.BASE_LR has no value", "SOLVER.BASE_LR=VALUE"]),
        ("SOLVER.BASE_LR=fast", ["SOLVER.BASE_LR=fast", "expected a float", "0.001"]),
        ("INPUT.MIN_SIZE_TRAIN 800", ["INPUT.MIN_SIZE_TRAIN=800", "expected a tuple", "(800,)"]),
        ("MODEL.MASK_ON 1", ["MODEL.MASK_ON=1", "expected a bool"]),
        ("MODE_MASK=False", ["MODE_MASK is a key of tensorpack", "MODEL.MASK_ON"]),
        ("TRAIN.LR_SCHEDULE 2x", ["SOLVER.STEPS", "8 images"]),
    ],
)
def test_mistakes(words, named):
    with pytest.raises(ValueError) as e:
        merge_options(config(), words.split())
    assert all(n in str(e.value) for n in named) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "words,message",
    [
        ("SOLVER.BASE_LRR=1", "no key SOLVER.BASE_LRR; the nearest is SOLVER.BASE_LR"),
        ("MODLE.MASK_ON True", "no key MODLE.MASK_ON; the nearest is MODEL.MASK_ON"),
        ("BASE_LR=1", "no key BASE_LR; the nearest is SOLVER.BASE_LR"),
        ("solver.base_lr=1", "no key solver.base_lr; the nearest is SOLVER.BASE_LR"),
        ("solver.base_lr=1 SEED=3", "no key solver.base_lr; the nearest is SOLVER.BASE_LR"),
        ("solver.base_lr 1 SEED=3", "no key solver.base_lr; the nearest is SOLVER.BASE_LR"),
        ("FPN.PROPOSAL_MODE=x", "no key FPN.PROPOSAL_MODE"),  # of tensorpack
        ("SEED=3 a.jpg=x", "no key a.jpg"),
    ],
)
def test_unknown_keys(words, message):
    """Keys are in capitals; a suggestion is near."""
    with pytest.raises(ValueError) as e:
        merge_options(config(), words.split())
    assert str(e.value) == f"there is {message}"


def test_tensorpack_keys():
    """They are none of ours, and what they are here exists."""
    cfg = config()
    for key, here in TENSORPACK_KEYS.items():
        with pytest.raises(ValueError, match="key of tensorpack"):
            merge_options(cfg, [f"{key}=1"])
        name = here.split()[0].rstrip(",;").partition("=")[0]
        if "." in name and name[0].isupper():
            node = cfg
            for part in name.split("."):
                assert part in node, here
                node = node[part]


@pytest.mark.parametrize(
    "word,yes",
    [
        ("MODEL.MASK_ON", True),
        ("SEED=1", True),
        ("MODE_FPN=True", True),
        ("FPN.NORM", True),
        ("IMG_0001.JPG", False),
        ("photo=1.jpg", False),
        ("MODLE.MASK_ON=1", True),
        ("MODLE.MASK_ON", False),
        ("MODEL/a.png", False),
    ],
)
def test_is_option(word, yes):
    assert is_option(word) == yes
