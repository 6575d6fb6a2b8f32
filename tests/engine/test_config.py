"""Mistakes in config files and overrides are one line that names them."""

import pytest

from dcn_projects.engine import read_config
from dcn_projects.errors import one_line_errors

MISTAKES = {
    "- a\n- b": "no 'KEY: value' pairs",
    "only text": "no 'KEY: value' pairs",
    "": "no 'KEY: value' pairs",
    "MODEL: 3": "no 'KEY: value' pairs",
    "_BASE_: 3": "no 'KEY: value' pairs",
    "_BASE_: config.yaml": "its own base",
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


@pytest.mark.parametrize(
    "error, message",
    [
        (KeyError("No object named 'Foo' found"), "a.yaml: No object named 'Foo' found"),
        (KeyError("res6"), "a.yaml: there is no res6"),
        (AssertionError("two\nlines"), "a.yaml: two lines"),
    ],
)
def test_errors_of_models(error, message):
    with pytest.raises(ValueError) as e, one_line_errors("a.yaml"):
        raise error
    assert str(e.value) == message


def test_errors_of_weights(tmp_path):
    """The config is not to blame for what begins with the name of a file."""
    path = tmp_path / "model.pth"
    messages = [f"{path}: it is of another model", "detectron2://x/model.pkl: it lacks x"]
    path.touch()
    for message in messages:
        with pytest.raises(ValueError) as e, one_line_errors("a.yaml"):
            raise ValueError(message)
        assert str(e.value) == message
    with (
        pytest.raises(ValueError, match=f"^a.yaml: {tmp_path}/no.pth: x$"),
        one_line_errors("a.yaml"),
    ):
        raise ValueError(f"{tmp_path}/no.pth: x")


def test_an_error_without_a_message_shows_its_line():
    with pytest.raises(ValueError) as e, one_line_errors("a.yaml"):
        raise AssertionError  # as an assertion of detectron2
    assert str(e.value).startswith("a.yaml: AssertionError at raise AssertionError")
    assert "(test_config.py, line " in str(e.value)
