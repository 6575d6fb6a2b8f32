"""Mistakes in config files and overrides are one line that names them."""

import pytest

from dcn_projects.engine import read_config

MISTAKES = {
    "- a\n- b": "no 'KEY: value' pairs",
    "only text": "no 'KEY: value' pairs",
    "": "no 'KEY: value' pairs",
    "MODEL: 3": "no 'KEY: value' pairs",
    "_BASE_: 3": "no 'KEY: value' pairs",
    "_BASE_: config.yaml": "leads back to it",
    "MODEL: {RFCM: 1}": "MODEL.RFCM",
    "MODEL: {MASK_ON: 7": "line 1",
    "MODEL:\n  ROI_BOX_HEAD: {POOLER_GAMMA: much}": "MODEL.ROI_BOX_HEAD.POOLER_GAMMA",
}


@pytest.mark.parametrize("content", MISTAKES)
def test_files(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_config(str(path))
    message = str(error.value)
    assert message.startswith(str(path)) and MISTAKES[content] in message and "\n" not in message


def test_missing_base(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: none.yaml")
    with pytest.raises(OSError, match="none.yaml"):
        read_config(str(path))


def test_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  ROI_BOX_HEAD: {POOLER_GAMMA: 0.2}")
    cfg = read_config(str(path), ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3"])
    assert (cfg.MODEL.ROI_BOX_HEAD.POOLER_GAMMA, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION) == (
        0.2,
        3,
    )
    for opts in (
        ["MODEL.MIMIC.MIN_BOX.X", "3"],
        ["MODEL.MIMIC.MINBOX", "3"],
        ["MODEL.MIMIC.MIN_BOX"],
    ):
        with pytest.raises(ValueError, match="config.yaml: "):
            read_config(str(path), opts)
