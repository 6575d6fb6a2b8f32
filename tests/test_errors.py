"""Errors become one line that names what is wrong."""

import pytest

from dcn_projects.errors import exit_with_one_line, one_line_errors


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
    assert "(test_errors.py, line " in str(e.value)


def test_a_line_break_in_a_path():
    with pytest.raises(SystemExit) as e, exit_with_one_line():
        raise OSError("images/a  b\nc.jpg does not exist")
    assert e.value.code == "error: images/a  b c.jpg does not exist"
