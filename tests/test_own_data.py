"""docs/own_data.md: its program for the layout of Pascal VOC works as it is written there."""

import json
import shlex

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from .markdown_pages import ROOT, blocks, commands
from .voc_data import annotation_xml, object_xml, write_voc

PAGE = ROOT / "docs/own_data.md"
PROGRAM = "train_my_voc.py"
SIZE = (64, 48)
# Behind what the page says: fewer iterations, smaller images.
QUICK = "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 INPUT.MIN_SIZE_TRAIN [64] INPUT.MIN_SIZE_TEST 64"
QUICK += " MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current one, with the program of the page and the data that it names, and no more."""
    (block,) = (b for b in blocks(PAGE) if b.text.startswith(f"# {PROGRAM}\n"))
    (tmp_path / PROGRAM).write_text(block.text)
    objects = object_xml("cat", (3, 4, 30, 40)), object_xml("dog", (20, 10, 60, 30))
    xml = annotation_xml(*objects, size=SIZE)
    for split in ("train", "val"):
        images = {f"{split} {i}": xml for i in range(3)}
        places = dict(list_file=f"{split}.txt", annotations="annotations", pictures="images")
        write_voc(tmp_path / "my_voc", images, suffix=".png", size=SIZE, **places)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, run_program):
    """run(command of the page) returns the exit code and the output."""

    def run(command):
        python, program, *words = shlex.split(command)
        assert (python, program) == ("python", PROGRAM)
        try:
            return run_program(folder / PROGRAM, *words, *QUICK.split())
        finally:
            for name in ("my_voc_train", "my_voc_val"):
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    return run


def test_a_program_for_the_layout_of_voc(folder, run):
    (block,) = (b for b in blocks(PAGE) if b.text.startswith("# my_voc: train and evaluate\n"))
    _, train, evaluate = commands(block.text)
    code, output = run(train)
    assert code == 0, output
    results = folder / "output/my_voc/results.json"
    trained = json.loads(results.read_text())
    results.unlink()
    code, output = run(evaluate)
    assert code == 0, output
    evaluated = json.loads(results.read_text())
    assert evaluated == trained and evaluated["bbox"].keys() >= {"AP50-cat", "AP50-dog"}

    # A mistake in the test data is found before the training.
    path = folder / "my_voc/annotations/val 1.xml"
    path.write_text(path.read_text().replace("dog", "dgo"))
    code, output = run(train)
    assert code == 1 and output.splitlines()[-1] == (
        "error: my_voc/annotations/val 1.xml: an object is of the class 'dgo', which is none of "
        "the data set's (cat, dog). Correct it, or add the class where the data set is registered"
    )
