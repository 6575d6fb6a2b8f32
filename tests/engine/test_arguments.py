import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from dcn_projects.engine import option_pairs, parse_arguments, read_config
from dcn_projects.engine.command_line import ConfigArgumentParser
from tests.conftest import ROOT

CONFIG = "configs/Base-RCNN-C5.yaml"
FILE = ["--config-file", "a.yaml"]


def parse(words):
    return parse_arguments(FILE + words.split())


def test_flags_count_wherever_they_stand():
    args = parse("SOLVER.BASE_LR 0.01 --resume A.B=-1 --num-gpus 8 C 1.5")
    assert args.resume and args.num_gpus == 8 and args.config_file == "a.yaml"
    assert args.opts == ["SOLVER.BASE_LR", "0.01", "A.B=-1", "C", "1.5"]
    assert not args.eval_only and args.predict is None and args.evaluate is None


@pytest.mark.parametrize("value", ["-1.5", "-1e-3", "-inf", "-nan", "-x"])
@pytest.mark.parametrize("flag", ["", "--config "])
def test_negative_values(value, flag):
    args = parse(f"{flag}SOLVER.BASE_LR {value} SEED=1 --num-gpus 2")
    assert list(option_pairs(args.opts)) == [("SOLVER.BASE_LR", value), ("SEED", "1")]
    assert args.num_gpus == 2 and args.eval_iter is None


def test_flag_behind_a_key():
    """OUTPUT_DIR is TEST here, the name of a group of keys."""
    args = parse("OUTPUT_DIR TEST -i 500")
    assert args.opts == ["OUTPUT_DIR", "TEST"] and args.eval_iter == 500


def test_as_detectron2():
    args = parse("--num-machines 2 --machine-rank 1 --dist-url x --eval-only MODEL.DEVICE cpu")
    assert (args.num_machines, args.machine_rank, args.dist_url) == (2, 1, "x")
    assert args.eval_only and args.opts == ["MODEL.DEVICE", "cpu"]


def test_defaults_of_detectron2():
    theirs = vars(default_argument_parser().parse_args(FILE))
    ours = vars(parse_arguments(FILE))
    assert {key: ours[key] for key in theirs} == theirs


def test_config_by_its_name(tmp_path, monkeypatch):
    """From any folder; a file of that name comes first, and a wrong name is left to read_config."""
    name = "R-FCN/rfcn_R_101_C5_voc.yaml"
    monkeypatch.chdir(tmp_path)
    assert parse_arguments(["--config-file", name]).config_file == str(ROOT / "configs" / name)
    (tmp_path / "R-FCN").mkdir()
    (tmp_path / name).touch()
    assert parse_arguments(["--config-file", name]).config_file == name
    wrong = parse_arguments(["--config-file", "R-FCN/rfcn_R_101_C5_vok.yaml"]).config_file
    assert wrong == "R-FCN/rfcn_R_101_C5_vok.yaml"
    with pytest.raises(FileNotFoundError, match=name):
        read_config(wrong)


def test_load_and_config():
    args = parse("--config SEED=1 MODEL.DEVICE cpu --load w.pth SEED=2")
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "SEED=1", "MODEL.DEVICE", "cpu", "SEED=2"]
    assert parse("SEED=3").opts == ["SEED=3"]


def test_flags_of_many_words_more_than_once():
    args = parse("--config A=1 B 2 --config C=3 SEED=4")
    assert args.opts == ["A=1", "B", "2", "C=3", "SEED=4"]
    args = parse("--predict a.jpg SEED=1 --predict b.jpg c.jpg")
    assert args.predict == ["a.jpg", "b.jpg", "c.jpg"] and args.opts == ["SEED=1"]


def test_predict(tmp_path, monkeypatch):
    args = parse("--predict a.jpg IMG.JPG MODEL.DEVICE cpu --load w.pth --confidence 0.3")
    assert args.predict == ["a.jpg", "IMG.JPG"] and args.confidence == 0.3
    assert args.opts == ["MODEL.WEIGHTS", "w.pth", "MODEL.DEVICE", "cpu"]
    assert parse("--predict a.jpg").confidence == 0.5
    monkeypatch.chdir(tmp_path)
    Path("SEED").touch()
    assert parse("--predict SEED").predict == ["SEED"]


@pytest.mark.parametrize("weights", ["--load", "--weights"])
@pytest.mark.parametrize("images", ["--predict", "--input", "--image"])
@pytest.mark.parametrize("score", ["--confidence", "--confidence-threshold", "--score-threshold"])
@pytest.mark.parametrize("options", ["--config", "--opts"])
def test_options_have_the_names_of_all_origins(weights, images, score, options):
    words = f"{weights} w.pth {images} a.jpg {score} 0.3 --output out {options} SEED 1"
    demo = ConfigArgumentParser(several=True)
    demo.add_drawing_flags()
    for args in (parse(words), demo.parse_words(FILE + words.split())):
        assert args.weights == ["w.pth"] and args.predict == ["a.jpg"] and args.confidence == 0.3
        assert args.output == Path("out") and args.config_files == ["a.yaml"]
        assert args.opts == ["MODEL.WEIGHTS", "w.pth", "SEED", "1"]


def test_several_models():
    args = parse("--load a.pth --config-file b.yaml --load b.pth --predict a.jpg SEED=1")
    assert args.config_files == ["a.yaml", "b.yaml"] and args.weights == ["a.pth", "b.pth"]
    assert args.opts == ["SEED=1"]
    # Without --predict the last one counts.
    args = parse("--load a.pth --config-file b.yaml --load b.pth")
    assert args.config_file == "b.yaml" and args.opts == ["MODEL.WEIGHTS", "b.pth"]


def test_several_models_of_one_flag():
    """As in demo.py, where options of the config may follow them."""
    parser = ConfigArgumentParser(several=True)
    parser.add_drawing_flags()
    words = (
        "--config-file a.yaml b.yaml MODEL.DEVICE cpu --weights a.pth b.pth SEED=1 --input a.jpg"
    )
    args = parser.parse_words(words.split())
    assert args.config_files == ["a.yaml", "b.yaml"] and args.weights == ["a.pth", "b.pth"]
    assert args.predict == ["a.jpg"] and args.opts == ["MODEL.DEVICE", "cpu", "SEED=1"]


def test_evaluate(tmp_path):
    args = parse(f"--evaluate {tmp_path}/found.json")
    assert args.eval_only and args.evaluate == tmp_path / "found.json"


@pytest.mark.parametrize(
    "words,named",
    [
        (
            "--eval",
            "--eval: flags are not abbreviated, write --eval-only or --eval-iter or --evaluate",
        ),
        ("SEED=1 --num 3", "--num: flags are not abbreviated"),
        ("--res", "write --resume"),
        ("--machine-rnk 1", "there is no flag --machine-rnk"),
        ("-1e-3", "there is no flag -1e-3"),
        ("OUTPUT_DIR --x", "a value that begins with - is written KEY=VALUE"),
        ("--logdir x", "--logdir of tensorpack is OUTPUT_DIR=FOLDER here"),
        ("--config b.yaml", "For a file write --config-file"),
        ("--predict", "--predict: name at least one image"),
        ("--config SEED=1 --config b.yaml", "For a file write --config-file"),
        ("--predict SEED=1", "--predict: name at least one image"),
        ("--predict a.jpg --predict", "--predict: name at least one image"),
        ("--predict a.jpg --eval-only", "--predict goes with none"),
        ("--output out", "--output goes with --predict"),
        ("--evaluate found.txt", "must end in .json"),
        ("--evaluate nowhere/found.json", "there is no folder nowhere"),
        ("--load a.pth MODEL.WEIGHTS=b.pth", "keep one"),
        ("--load", "expected one argument"),
    ],
)
def test_mistakes(words, named, capsys):
    with pytest.raises(SystemExit) as e:
        parse(words)
    assert e.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_no_config_file(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["SEED=1"])
    assert "--config-file is missing" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["", "--config ", "--predict a.jpg "])
def test_mistyped_key(flag):
    args = parse(f"{flag}MODLE.MASK_ON=True")
    with pytest.raises(ValueError, match="no key MODLE.MASK_ON; the nearest is MODEL.MASK_ON$"):
        read_config(CONFIG, args.opts)


# A folder whose torch cannot be imported, as if there were none
BROKEN = "raise ImportError('torch is not to be imported here')"


@pytest.mark.parametrize(
    "words,code,printed",
    [
        (["--help"], 0, "--predict"),
        (["--config-file", "a.yaml", "--res"], 2, "write --resume"),
        (["--config-file", "a.yaml", "--predict"], 2, "name at least one image"),
        (["SEED=1"], 2, "--config-file is missing"),
    ],
)
def test_help_and_mistakes_do_not_import_torch(words, code, printed, tmp_path):
    for name in ("torch", "detectron2", "cv2"):
        (tmp_path / f"{name}.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)

    done = run(str(ROOT / "train_net.py"), *words)
    assert done.returncode == code and printed in (done.stdout or done.stderr), done.stderr
    assert "is not to be imported here" in run("-c", "import torch").stderr  # it would be noticed
