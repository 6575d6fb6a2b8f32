"""Trainings with several seeds: what is run, what is kept, what is refused."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# In place of train_net.py: "trains" at once, the worse the larger the seed.
TRAINING = """
import json, os, sys
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
config, seed = sys.argv[2], int(options["SEED"])
print("begun", flush=True)
if "broken" in config:
    sys.exit("error: broken")
with open(options["OUTPUT_DIR"] + "/results.json", "w") as f:
    json.dump({"bbox": {"AP": float(options["AP"]) - seed, "AP50": 50.0}}, f)
if "slow" in config and not os.path.exists("interrupted"):
    open("interrupted", "w").close()
    sys.exit("error: interrupted after an evaluation")
"""


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    (tmp_path / "train_net.py").write_text(TRAINING)
    for name in ("a", "b", "broken", "slow"):
        (tmp_path / f"{name}.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    import measure

    monkeypatch.setattr(measure, "ROOT", tmp_path)

    def run(*arguments):
        fixed = ["--json", tmp_path / "all.json", "--output", tmp_path / "runs", "--seeds", 1, 2, 3]
        monkeypatch.setattr(sys, "argv", [str(a) for a in ("train_seeds.py", *fixed, *arguments)])
        runpy.run_path(str(FOLDER / "train_seeds.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_means_spreads_and_everything_in_the_json(run, tmp_path):
    out = run("--configs", "a.yaml", "b.yaml", "--jobs", 2, "AP", "20")
    assert "| config | bbox AP | bbox AP50 |" in out  # AP75 and masks are not there
    assert "| a | 18.0 ± 1.0 | 50.0 ± 0.0 |" in out and "| b | 18.0" in out
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["runs"]["b"]["3"] == {"bbox": {"AP": 17.0, "AP50": 50.0}}
    assert report["options"] == ["AP", "20"]


def test_nothing_is_run_twice_or_mixed_with_other_options(run, tmp_path):
    for _ in range(2):
        run("--configs", "a.yaml", "--jobs", 1, "AP", "20")
    assert (tmp_path / "runs/a/2/output.txt").read_text() == "begun\n"
    with pytest.raises(SystemExit, match="runs/a/1 is of a run with other options"):
        run("--configs", "a.yaml", "--jobs", 1, "AP", "30")


def test_what_was_evaluated_but_not_finished_goes_on(run, tmp_path):
    with pytest.raises(SystemExit, match="training failed"):
        run("--configs", "slow.yaml", "--jobs", 1, "AP", "20")
    assert (tmp_path / "runs/slow/1/results.json").exists()
    run("--configs", "slow.yaml", "--jobs", 1, "AP", "20")
    assert (tmp_path / "runs/slow/1/output.txt").read_text().count("begun") == 2


def test_a_failed_training_names_its_log(run):
    with pytest.raises(SystemExit, match="training failed: see .*/runs/broken/1/output.txt"):
        run("--configs", "broken.yaml", "--jobs", 1, "AP", "20")


def test_a_key_in_place_of_a_config(run, capsys):
    with pytest.raises(SystemExit):
        run("--configs", "a.yaml", "SOLVER.MAX_ITER", "20")
    assert "no config SOLVER.MAX_ITER" in capsys.readouterr().err


def test_what_would_fail_at_the_end_fails_at_once(run, capsys):
    for arguments, message in [
        (["--configs", "a.yaml", "./a.yaml"], "same file name"),
        (["--configs", "a.yaml", "--metrics", "bbox/AP", "SEED"], "task/metric, got SEED"),
        (["--configs", "a.yaml", "--json", "nowhere/all.json"], "no folder nowhere"),
    ]:
        with pytest.raises(SystemExit):
            run(*arguments, "--jobs", 1, "AP", "20")
        assert message in capsys.readouterr().err
