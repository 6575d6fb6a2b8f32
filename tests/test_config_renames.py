"""Configs of version 0.1, whose keys had other names, describe the same models."""

import json
import logging
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from dcn_projects import add_dcn_config
from dcn_projects.config_keys import leaves, value_of
from dcn_projects.config_renames import KEYS, RFCN_KEYS
from dcn_projects.engine import read_config
from dcn_projects.engine.config import renamed_in

CONFIGS = Path("configs")
GOLDEN = Path(__file__).parent / "goldens" / "configs" / "version_0_1.json"
OLD = json.loads(GOLDEN.read_text())
OLD_DEFAULTS = OLD.pop("")
# What was changed since, on purpose: start of the path of a config -> key -> the value of today. A
# training of version 0.1 goes on with the values of its own config.yaml.
CHANGED = {
    # Its heads know the scale of an image, which the last NMS of the original needs.
    "Faster-R-CNN/": {"MODEL.META_ARCHITECTURE": "MXNetFasterRCNN"},
    # Three settings were not those of the original, which it was said to have.
    "DCNv2/e2e_": {
        "MODEL.RPN.BOUNDARY_THRESH": 0,
        "MODEL.ANCHOR_GENERATOR.NAME": "PyFasterRCNNAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
        "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    },
}


def merged(*nodes: dict) -> dict:
    """Nested dicts, of which a later one overrides an earlier one."""
    result = {}
    for node in nodes:
        for key, value in node.items():
            is_node = isinstance(value, dict)
            result[key] = merged(result.get(key, {}), value) if is_node else value
    return result


def old_dump(name: str) -> str:
    """What a training of version 0.1 with a config wrote: all keys, those of other models too."""
    return yaml.safe_dump(merged(yaml.safe_load(get_cfg().dump()), OLD_DEFAULTS, OLD[name]))


def plain(cfg) -> dict:
    """A config without the difference of tuples and lists, which YAML does not make."""
    return json.loads(json.dumps(cfg))


@pytest.fixture
def read(tmp_path, caplog):
    """
    Returns a function of the text of a config file and of options: the config, and what was renamed
    by the one line of the log.
    """

    def read_text(text, *opts):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            cfg = read_config(str(path), opts)
        lines = [r.message for r in caplog.records if r.name.startswith("dcn_projects")]
        if not lines:
            assert renamed_in(path) is None
            return cfg, []
        assert lines == [renamed_in(path)] and "\n" not in lines[0]
        where, renamed = lines[0].split(" names of version 0.1: ")
        assert where == (f"{path} or the options have" if opts else f"{path} has")
        return cfg, renamed.split(", ")

    return read_text


@pytest.mark.parametrize("name", OLD)
def test_old_config_of_a_training(name, read):
    cfg, renamed = read(old_dump(name))
    # Keys of other models, which have their defaults in the file, are not named.
    changed = dict(leaves(OLD[name]))
    for old, new in KEYS.items():
        is_changed = old in changed and changed[old] != value_of(OLD_DEFAULTS, old)
        assert renamed.count(f"{old} is {new} now") == is_changed
    assert len(renamed) == len(set(renamed))
    # The name of a parameter, which SOLVER.LR_FACTORS matches under its old name, too.
    factors = [[p.replace("conv2_offset", "conv_offset"), f] for p, f in cfg.SOLVER.LR_FACTORS]
    cfg.SOLVER.LR_FACTORS = factors
    today = read_config(str(CONFIGS / name))
    for start, values in CHANGED.items():
        for key, value in values.items() if name.startswith(start) else ():
            assert value_of(cfg, key) != value == value_of(today, key)
            cfg.merge_from_list([key, value])
    assert plain(cfg) == plain(today)
    assert cfg.MODEL.META_ARCHITECTURE != "build_deformable_model"


def test_new_configs_have_no_old_names(caplog):
    path = "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
    read_config(path)
    assert not [r for r in caplog.records if r.name.startswith("dcn_projects")]
    assert renamed_in(path) is None


def test_the_line_is_logged_once(caplog, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {MIMIC: {SIZE: 64}}")
    for _ in range(2):
        read_config(path)
    line = f"{path} has names of version 0.1: MODEL.MIMIC.SIZE is MODEL.MIMIC.PATCH_SIZE now"
    assert [r.message for r in caplog.records if r.name.startswith("dcn_projects")] == [line]
    path.write_text("MODEL: {MIMIC: {PATCH_SIZE: 64}}")
    read_config(path)
    assert renamed_in(path) is None


RFCN = "MODEL: {META_ARCHITECTURE: RFCN, RFCN: {GROUP_SIZE: 3, DEFORM_POOL: true}}"


def test_rfcn(read):
    cfg, renamed = read(RFCN)
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.POOLER_TYPE, head.POOLER_RESOLUTION) == ("DeformPSROIPool", 3)
    assert (head.REDUCED_DIM, head.POOLER_SAMPLING_RATIO, head.POOLER_GAMMA) == (1024, 4, 0.1)
    assert renamed == [
        "MODEL.RFCN.GROUP_SIZE 3 is MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 3 now",
        "MODEL.RFCN.DEFORM_POOL True is MODEL.ROI_BOX_HEAD.POOLER_TYPE DeformPSROIPool now",
    ]
    # The box head had keys of these names, which R-FCN did not read.
    cfg, _ = read(RFCN + "\nSEED: 1", "MODEL.RFCN.CONV_DIM=8", "MODEL.RFCN.DEFORM_POOL", "False")
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "PSROIPool"
    assert cfg.MODEL.ROI_BOX_HEAD.REDUCED_DIM == 8


def test_rfcn_whose_convolutions_were_swapped(read):
    """Its keys are not lost, although META_ARCHITECTURE was not RFCN in version 0.1."""
    plain_rfcn, _ = read(RFCN)
    swapped = "META_ARCHITECTURE: build_deformable_model, DEFORMABLE: {META_ARCHITECTURE: RFCN}"
    text = RFCN.replace("META_ARCHITECTURE: RFCN", swapped)
    cfg, _ = read(text)
    assert cfg.MODEL.META_ARCHITECTURE == "RFCN"
    assert cfg.MODEL.ROI_BOX_HEAD == plain_rfcn.MODEL.ROI_BOX_HEAD
    cfg, _ = read(text, "MODEL.RFCN.GAMMA=0.2", "MODEL.RFCN.DEFORM_POOL=False")
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_GAMMA == 0.2
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "PSROIPool"


def test_old_keys_on_a_base_of_today(read):
    """Nothing but what they say is changed, also where the base has the key under its new name."""
    base = (CONFIGS / "R-FCN/rfcn_R_14_C5_digits.yaml").resolve()
    cfg, _ = read(f"_BASE_: {base}\nMODEL: {{RFCN: {{DEFORM_POOL: true}}}}")
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.POOLER_TYPE, head.POOLER_RESOLUTION) == ("DeformPSROIPool", 3)
    assert head.REDUCED_DIM == 256
    base = (CONFIGS / "Dynamic-RCNN/dynamic_rcnn_R_14_FPN_digits.yaml").resolve()
    cfg, renamed = read(f"_BASE_: {base}\nMODEL: {{DYNAMIC_RCNN: {{KI: 9}}}}")
    assert (cfg.MODEL.DYNAMIC_RCNN.IOU_TOPK, cfg.MODEL.DYNAMIC_RCNN.ERROR_TOPK) == (9, 6)
    assert renamed == ["MODEL.DYNAMIC_RCNN.KI is MODEL.DYNAMIC_RCNN.IOU_TOPK now"]


def test_keys_of_today_on_an_old_base(read, tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {DYNAMIC_RCNN: {KI: 9, KE: 4}}")
    cfg, _ = read("_BASE_: base.yaml\nMODEL: {DYNAMIC_RCNN: {IOU_TOPK: 12}}")
    assert (cfg.MODEL.DYNAMIC_RCNN.IOU_TOPK, cfg.MODEL.DYNAMIC_RCNN.ERROR_TOPK) == (12, 4)


SWAPS = "MODEL.META_ARCHITECTURE=build_deformable_model"
SWAPPED = "MODEL.DEFORMABLE.META_ARCHITECTURE=RetinaNet"


@pytest.mark.parametrize(
    "text, opts, wanted",
    [
        ("SEED: 1", (SWAPS,), "GeneralizedRCNN"),
        ("SEED: 1", (SWAPS, SWAPPED), "RetinaNet"),
        ("MODEL: {META_ARCHITECTURE: build_deformable_model}", (SWAPPED,), "RetinaNet"),
    ],
)
def test_swapped_convolutions(text, opts, wanted, read):
    """The model's own name is the meta-architecture, wherever the two were given."""
    cfg, renamed = read(text, *opts)
    assert cfg.MODEL.META_ARCHITECTURE == wanted
    key = "MODEL.META_ARCHITECTURE"
    assert renamed == [f"{key} build_deformable_model is {key} {wanted} now"]


def test_options_of_the_command_line(read):
    cfg, renamed = read(
        "SEED: 1",
        *("MODEL.MIMIC.SIZE", "64", "MODEL.DYNAMIC_RCNN.ITERATION_COUNT=7"),
        "MODEL.ANCHOR_GENERATOR.NAME=MXNetAnchorGenerator",
    )
    assert (cfg.MODEL.MIMIC.PATCH_SIZE, cfg.MODEL.DYNAMIC_RCNN.UPDATE_PERIOD) == (64, 7)
    assert cfg.MODEL.ANCHOR_GENERATOR.NAME == "PyFasterRCNNAnchorGenerator"
    key = "MODEL.ANCHOR_GENERATOR.NAME"
    assert renamed == [
        "MODEL.MIMIC.SIZE is MODEL.MIMIC.PATCH_SIZE now",
        "MODEL.DYNAMIC_RCNN.ITERATION_COUNT is MODEL.DYNAMIC_RCNN.UPDATE_PERIOD now",
        f"{key} MXNetAnchorGenerator is {key} PyFasterRCNNAnchorGenerator now",
    ]


@pytest.mark.parametrize(
    "text, opts, message",
    [
        ("MODEL: {RFCN: {GAMA: 1}}", (), "there is no key MODEL.RFCN.GAMA"),
        ("MODEL: {RFCN: 3}", (), "no 'KEY: value' pairs"),
        (RFCN.replace("true", "2"), (), "MODEL.RFCN.DEFORM_POOL is 2, expected True or False"),
        (RFCN, ("MODEL.RFCN.DEFORM_POOL=x",), "DEFORM_POOL is x, expected True or False"),
        (RFCN, ("MODEL.RFCN.GAMA=1",), "there is no key MODEL.RFCN.GAMA"),
        ("SEED: 1", ("MODEL.RFCN.GAMMA=1",), "MODEL.RFCN.GAMMA is a key of R-FCN"),
        ("MODEL: {DYNAMIC_RCNN: {KI: x}}", (), "MODEL.DYNAMIC_RCNN.IOU_TOPK"),
    ],
)
def test_mistakes(text, opts, message, read):
    with pytest.raises(ValueError, match=message) as error:
        read(text, *opts)
    assert "config.yaml: " in str(error.value) and "\n" not in str(error.value)


OLD_NAMES = [*KEYS, *(f"MODEL.RFCN.{name}" for name in RFCN_KEYS)]


@pytest.mark.parametrize("key", OLD_NAMES)
def test_detectron2s_own_merging_names_the_new_key(key, tmp_path):
    cfg = get_cfg()
    add_dcn_config(cfg)
    add_dcn_config(cfg)  # a second time does no harm
    new = KEYS.get(key, "MODEL.ROI_BOX_HEAD")
    with pytest.raises(KeyError, match=f"was renamed to {new}"):
        cfg.merge_from_list([key, 1])
    node = 1
    for part in reversed(key.split(".")):
        node = {part: node}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**node, "VERSION": 2}))
    with pytest.raises(KeyError, match=f"was renamed to {new}"):
        cfg.merge_from_file(str(tmp_path / "config.yaml"))
    cfg.clone().merge_from_list(["MODEL.MIMIC.PATCH_SIZE", 32])
