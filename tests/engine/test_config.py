"""Mistakes in config files and overrides are one line that names them."""

import os
import time

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
    "MODEL: {WEIGHTS: !mine a}": "line 1: '!mine' makes an object. A config holds plain values",
    "MODEL: {MASK_ON: !!bool 3}": "a value does not have the type of its tag",
    "MODEL: {MASK_ON: !!float ''}": "a value does not have the type of its tag",
    "MODEL: {WEIGHTS: '{[1]: 2}'}": "MODEL.WEIGHTS: '{[1]: 2}' cannot be a value (unhashable",
    "MODEL: {WEIGHTS: '" + "-" * 9999 + "1'}": "MODEL.WEIGHTS: '----",
    "MODEL: \0": "unacceptable character #x0000: special characters are not allowed in it,",
    "MODEL: &m {WEIGHTS: *m}": "line 1: *m is a part of itself",
}


@pytest.mark.parametrize("content", MISTAKES)
def test_files(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_config(str(path))
    message = str(error.value)
    assert message.startswith(str(path)) and MISTAKES[content] in message and "\n" not in message


# What takes long, or much memory, or is called something else, if it is read before it is counted.
TOO_MUCH = {
    "aliases": (
        "k0: &k0 [1]\n" + "".join(f"k{i}: &k{i} [{f'*k{i - 1},' * 9}]\n" for i in range(1, 12)),
        "line 6: it has more values than a config, with aliases (*name) written out",
    ),
    "merged aliases": (
        "k0: &k0 {x: 1}\n"
        + "".join(f"k{i}: &k{i} {{<<: [{f'*k{i - 1},' * 9}]}}\n" for i in range(1, 12)),
        "line 5: it has more values than a config, with aliases (*name) written out",
    ),
    "depth": ("MODEL: " + "[" * 100_000, "line 1: more than 32 lists or keys are in one another"),
    "length": ("A: 1\n" * 250_000, "it has more than 1,048,576 characters"),
    "bases": (
        "_BASE_: [" + "base.yaml, " * 100 + "]\n",
        "it has more than 100 files as bases, with theirs",
    ),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_limits(tmp_path, what):
    content, expected = TOO_MUCH[what]
    path = tmp_path / "config.yaml"
    path.write_text(content)
    (tmp_path / "base.yaml").write_text("MODEL: {MASK_ON: True}")
    before = time.process_time()
    with pytest.raises(ValueError) as error:
        read_config(str(path))
    assert time.process_time() - before < 2
    assert str(error.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/object/new:os.system"])
def test_no_code_is_run(tmp_path, tag):
    """Neither by the file nor by its base, which detectron2 reads too."""
    evil, config, proof = (tmp_path / name for name in ("evil.yaml", "config.yaml", "proof"))
    evil.write_text(f"MODEL: {{WEIGHTS: !!{tag} ['touch {proof}']}}")
    config.write_text("_BASE_: evil.yaml")
    for path in (evil, config):
        with pytest.raises(ValueError) as error:
            read_config(str(path))
        assert str(error.value) == (
            f"{evil}: line 1: '!!{tag}' makes an object. A config holds plain values only: write "
            "the numbers, texts or lists themselves"
        )
    assert not proof.exists()


def test_pipes(tmp_path):
    """For whose content a program would wait."""
    os.mkfifo(tmp_path / "pipe.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("_BASE_: pipe.yaml")
    with pytest.raises(OSError, match="pipe.yaml is no file"):
        read_config(str(path))


def test_the_second_reading_runs_no_code_either(tmp_path, monkeypatch):
    """Should a file change after it has been looked at."""
    path, proof = tmp_path / "evil.yaml", tmp_path / "proof"
    path.write_text(f"MODEL: {{WEIGHTS: !!python/object/apply:os.system ['touch {proof}']}}")
    monkeypatch.setattr("dcn_projects.engine.config.check_plain_yaml", lambda *args: None)
    with pytest.raises(ValueError, match="evil.yaml: could not determine a constructor"):
        read_config(str(path))
    assert not proof.exists()


def test_aliases(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {PIXEL_MEAN: &mean [1.0, 2.0, 3.0], PIXEL_STD: *mean}")
    assert read_config(str(path)).MODEL.PIXEL_STD == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("text", ["{[1]: 2}", "-" * 9999 + "1", "(1,", "9" * 400])
def test_overrides_that_are_no_values(text):
    name = "R-FCN/rfcn_R_101_C5_voc.yaml"
    with pytest.raises(ValueError, match="SOLVER.BASE_LR=.*: expected a float, such as"):
        read_config(name, [f"SOLVER.BASE_LR={text}"])


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
