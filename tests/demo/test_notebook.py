import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from detectron2.config import get_cfg
from matplotlib.backend_bases import MouseEvent

from dcn_projects import add_dcn_config

from ..conftest import ROOT

NOTEBOOK = ROOT / "demo/inference.ipynb"


def test_it_runs(tiny_model, tmp_path, monkeypatch):
    """Cell by cell; its outputs are not kept; a click draws the locations of that point."""
    matplotlib.use("Agg")
    config, weights, opts = tiny_model(spread=0.25)
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(opts)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    cv2.imwrite(str(tmp_path / "image.png"), np.full((96, 128, 3), 100, np.uint8))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    cells = [c for c in cells if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells)
    space = {}
    monkeypatch.chdir(NOTEBOOK.parent)  # as Jupyter does
    exec("".join(cells[0]["source"]), space)
    assert Path(space["CONFIG"]).exists()
    space |= {"CONFIG": str(tmp_path / "config.yaml"), "WEIGHTS": weights}
    space |= {"IMAGE": str(tmp_path / "image.png"), "POINTS": [(16, 33), (105, 40)]}
    for cell in cells[1:]:
        exec("".join(cell["source"]), space)
    figure, axis = space["figure"], space["axis"]
    before = axis.images[0].get_array().copy()
    x, y = axis.transData.transform((60, 60))
    figure.canvas.callbacks.process(
        "button_press_event", MouseEvent("button_press_event", figure.canvas, x, y, 1)
    )
    changed = (axis.images[0].get_array() != before).any(axis=2)
    assert 50 < changed.sum() < 2000
