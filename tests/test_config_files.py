"""Configs by name, without torch or detectron2."""

from pathlib import Path

import pytest

from dcn_projects import config_files

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NAME = "R-FCN/rfcn_R_101_C5_voc.yaml"


def test_names_are_those_of_all_models():
    files = {p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml")}
    bases = {name for name in files if name.rpartition("/")[2].startswith("Base-")}
    assert config_files.config_names() == sorted(files - bases)
    assert NAME in files and bases


def test_a_config_is_found_by_its_name_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert config_files.resolve_config_file(NAME) == str(CONFIGS / NAME)


def test_a_file_counts_before_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = Path(NAME)
    own.parent.mkdir()
    own.touch()
    assert config_files.resolve_config_file(own) == NAME
    assert config_files.resolve_config_file(own.resolve()) == str(own.resolve())


def test_an_address_stays_what_it_is():
    assert config_files.resolve_config_file("https://host/a.yaml") == "https://host/a.yaml"


@pytest.mark.parametrize("name", ["../setup.py", "R-FCN/../../setup.py"])
def test_a_path_out_of_the_folder_is_no_name(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert (CONFIGS / name).is_file()
    with pytest.raises(FileNotFoundError, match="There is no file .*setup.py, and .* not a config"):
        config_files.resolve_config_file(name)


@pytest.mark.parametrize("name", ["R-FCN/rfcn_R_101_C5_vok.yaml", f"configs/{NAME}"])
def test_the_error_about_an_unknown_name_has_the_nearest(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        config_files.resolve_config_file(name)
    message = str(error.value)
    assert message.startswith(f"There is no file {name}, ") and NAME in message
    assert "\n" not in message


def test_the_error_about_a_name_that_is_near_to_none_has_the_folders():
    message = config_files.unknown_config("q")
    assert message.startswith("q is not a config") and "R-FCN" in message
    assert str(CONFIGS) in message
