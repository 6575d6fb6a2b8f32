"""The command line on a small network: what is written, what loads, and mistaken runs."""

import os
import pickle
import runpy
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from dcn_projects import add_dcn_config
from dcn_projects.checkpoint import load_trained
from tests.checkpoint.maskrcnn_benchmark_networks import MaskRCNNBenchmark
from tests.checkpoint.original_networks import Original
from tests.checkpoint.params_writer import write_params
from tests.checkpoint.tensorpack_networks import Tensorpack

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_weights.py"
CONFIG = ROOT / "configs/R-FCN/deformable_rfcn_R_101_C5_voc.yaml"
NARROW = """
    MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 16
    MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.RPN.CONV_DIMS [32] MODEL.ROI_BOX_HEAD.REDUCED_DIM 64
""".split()
ORIGINAL = Original("R-FCN", True, classes=21, anchors=9, units=(1, 1, 1, 1), shrink=16)


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Returns the exit code, or in its place the message of an error, and what was printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name="__main__")
            code = 0
        except SystemExit as e:
            code = e.code
        return code, capsys.readouterr().out

    return run


def random_arrays(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def source(tmp_path):
    write_params(tmp_path / "rfcn_dcn_voc-0000.params", random_arrays(ORIGINAL.parameters()))
    return tmp_path / "rfcn_dcn_voc-0000.params"


def build():
    cfg = get_cfg()
    add_dcn_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *NARROW])
    return build_model(cfg)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_what_is_written_fills_the_model(run_tool, source, tmp_path, suffix):
    output = tmp_path / f"model.{suffix}"
    output.write_text("an older one")
    code, printed = run_tool(source, output, "--config-file", CONFIG, *NARROW)
    assert (code, printed) == (0, f"{output} is written from {source}: MXNet R-FCN\n")
    assert sorted(os.listdir(tmp_path)) == [output.name, source.name]
    pickled = suffix == "pkl"
    state = np.load(output, allow_pickle=True) if pickled else torch.load(output, weights_only=True)
    assert not state.get("matching_heuristics") and state["__author__"] == "dcn_projects"
    model = build()
    load_trained(model, str(output))
    bias = random_arrays(ORIGINAL.parameters())["arg:rfcn_bbox_offset_t_bias"]
    assert (
        model.roi_heads.score_maps.rfcn_bbox_offset.bias.detach().numpy().tolist() == bias.tolist()
    )


GN_CONFIG = ROOT / "configs/Mask-RCNN/mask_rcnn_R_50_FPN_2x_gn_tensorpack.yaml"
NARROW_GN = """
    MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 128
    MODEL.RESNETS.WIDTH_PER_GROUP 32 MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_HEADS.NUM_CLASSES 3
    MODEL.ROI_BOX_HEAD.CONV_DIM 32 MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.ROI_MASK_HEAD.CONV_DIM 32
""".split()
GN_ORIGINAL = Tensorpack(
    *(True, True, 4, (1, 1, 1, 1), "gn", "gn", "gn", "gn", "4conv1fc"),
    **dict(stem=32, width=32, dim=32, fc=8),
)


def test_tensorpack(run_tool, tmp_path):
    """Of which a config has all settings, unless the anchors are the older ones."""
    np.savez(tmp_path / "gn.npz", **random_arrays(GN_ORIGINAL.parameters()))
    arguments = [tmp_path / "gn.npz", tmp_path / "gn.pkl", "--config-file", GN_CONFIG, *NARROW_GN]
    written = f"{tmp_path}/gn.pkl is written from {tmp_path}/gn.npz: tensorpack detector\n"
    assert run_tool(*arguments) == (0, written)
    code, printed = run_tool(*arguments, "--legacy-anchors")
    assert (code, printed) == (
        0,
        written + "note: the original has other settings. For the same results set "
        "MODEL.ANCHOR_GENERATOR.NAME PyFasterRCNNAnchorGenerator "
        "MODEL.ANCHOR_GENERATOR.OFFSET 0.5\n",
    )
    np.savez(tmp_path / "gn.npz", **random_arrays(GN_ORIGINAL.resnet()))
    code, printed = run_tool(*arguments)
    assert (code, printed) == (0, written.replace("detector", "ImageNet classifier"))


def test_maskrcnn_benchmark(run_tool, tmp_path):
    original = MaskRCNNBenchmark(
        *(True, False), classes=4, units=(1, 1, 1, 1), stem=4, width=4, dim=8, fc=8
    )
    arrays = random_arrays(original.parameters())
    state = {f"module.{name}": torch.from_numpy(array + 1) for name, array in arrays.items()}
    torch.save({"model": state, "iteration": 1}, tmp_path / "a.pth")
    narrow = """
        MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 16
        MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_HEADS.NUM_CLASSES 3
        MODEL.ROI_BOX_HEAD.FC_DIM 8 MODEL.BACKBONE.NAME build_deform_resnet_fpn_backbone
    """.split()
    config = ROOT / "configs/Mask-RCNN/faster_rcnn_R_50_FPN_2x.yaml"
    arguments = [tmp_path / "a.pth", tmp_path / "b.pth", "--config-file", config, *narrow]
    code, _ = run_tool(*arguments)
    assert "MODEL.PIXEL_STD is [57.375, 57.12, 58.395], but the weights are for [1.0, " in code
    arguments += ["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"]
    code, _ = run_tool(*arguments)
    assert "MODEL.RESNETS.STRIDE_IN_1X1 is False, but the weights are for True" in code
    arguments += ["MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    code, printed = run_tool(*arguments)
    assert code == 0 and printed.endswith(
        "b.pth is written from " + str(tmp_path / "a.pth") + ": maskrcnn-benchmark detector\n"
        "note: the original has other settings. For the same results set "
        "MODEL.ANCHOR_GENERATOR.NAME PyFasterRCNNAnchorGenerator MODEL.ANCHOR_GENERATOR.OFFSET 0.5 "
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign "
        "MODEL.PIXEL_MEAN '[102.9801, 115.9465, 122.7717]'\n"
    )
    code, _ = run_tool(*arguments, "--legacy-anchors")
    assert "a.pth: --legacy-anchors is for tensorpack, the file is of maskrcnn-benchmark" in code
    code, _ = run_tool(*arguments, "--normalized-boxes")
    assert "a.pth: --normalized-boxes is for MXNet, the file is of maskrcnn-benchmark" in code
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-50])
    code, _ = run_tool(*arguments)
    assert code == (
        f"error: {tmp_path}/a.pth is cut off or damaged (File is not a zip file). Copy it again, "
        "or use an earlier one"
    )


def test_anchors_in_another_order(run_tool, tmp_path):
    """Who follows the note gets the rows of the original's RPN, in the order of its anchors."""
    original = MaskRCNNBenchmark(
        *(False, False), classes=4, anchors=15, units=(1, 1, 1, 3), stem=4, width=4
    )
    arrays = random_arrays(original.parameters())
    state = {name: torch.from_numpy(array + 1) for name, array in arrays.items()}
    torch.save({"model": state}, tmp_path / "a.pth")
    arguments = [tmp_path / "a.pth", tmp_path / "b.pth", "--config-file"]
    arguments.append(ROOT / "configs/Mask-RCNN/faster_rcnn_R_50_C4_2x.yaml")
    arguments += """
        MODEL.RESNETS.DEPTH 14 MODEL.RESNETS.STEM_OUT_CHANNELS 4 MODEL.RESNETS.RES2_OUT_CHANNELS 16
        MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.RPN.CONV_DIMS [64] MODEL.ROI_HEADS.NUM_CLASSES 3
        MODEL.BACKBONE.NAME build_deform_resnet_backbone MODEL.RESNETS.STRIDE_IN_1X1 True
        MODEL.PIXEL_STD [1.0,1.0,1.0]
    """.split()

    def convert(*opts):
        code, printed = run_tool(*arguments, *opts)
        assert code == 0
        model = torch.load(tmp_path / "b.pth")["model"]
        return printed, model["proposal_generator.rpn_head.objectness_logits.bias"]

    theirs = state["rpn.head.cls_logits.bias"]
    printed, bias = convert()
    assert torch.equal(bias, theirs.view(3, 5).T.flatten())
    note = "the anchors have another order. For the same results convert again with these options"
    assert note in printed
    printed, bias = convert(*shlex.split(printed.rsplit(": ", 1)[1]))
    assert "note" not in printed and torch.equal(bias, theirs)


def test_kinds_of_files(run_tool, tmp_path):
    """Whatever they are called."""
    source, output = tmp_path / "source", tmp_path / "output.pkl"
    arguments = [source, output, "--config-file", GN_CONFIG, *NARROW_GN]
    np.savez(tmp_path / "a.npz", **random_arrays(GN_ORIGINAL.parameters()))
    (tmp_path / "a.npz").rename(source)
    assert run_tool(*arguments)[0] == 0
    output.unlink()
    state = {"backbone.body.stem.conv1.weight": torch.zeros(1)}
    torch.save({"model": state}, source, _use_new_zipfile_serialization=False)
    assert "MODEL.PIXEL_STD" in run_tool(*arguments)[0]  # as for maskrcnn-benchmark
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("readme.txt", "")
    for content in (source.read_bytes(), b"", b"weights"):
        source.write_bytes(content)
        code, _ = run_tool(*arguments)
        assert code.startswith(f"error: {source}: unknown kind of weights") and "\n" not in code
    np.savez(source, a=np.ones(1))
    content = Path(f"{source}.npz").read_bytes()
    source.write_bytes(content.replace(b"PK\1\2", b"PK\1\1"))  # the head of its list of arrays
    code, _ = run_tool(*arguments)
    assert code.startswith(f"error: {source} is cut off or damaged (Bad magic number")
    assert not output.exists()


NAMES = {
    "a checkpoint of detectron2, which is used as it is: give it as MODEL.WEIGHTS": (
        ["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"],
        ["module.backbone.res2.0.conv2_offset.weight"],
        ["proposal_generator.rpn_head.conv.weight"],
    ),
    "such names cannot be converted, expected those of maskrcnn-benchmark": (
        ["transformer.encoder.layers.0.linear1.weight", "query_embed.weight"],
        ["model.0.conv.weight"],
        [],
    ),
}


@pytest.mark.parametrize(
    "names, message", [(names, message) for message, lists in NAMES.items() for names in lists]
)
def test_names_tell_the_origin(names, message, run_tool, tmp_path):
    """Before the pixels are compared with those of another origin."""
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "a.pth")
    arguments = [tmp_path / "a.pth", tmp_path / "b.pkl", "--config-file", GN_CONFIG]
    code, _ = run_tool(*arguments)
    assert message in code and "PIXEL" not in code and "\n" not in code
    if names and "such" in message:
        assert f"it has {names[0].removeprefix('model.')}" in code


def test_files_that_are_not_converted(run_tool, tmp_path):
    """A .pkl of the model zoo, which is used as it is, and programs."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {}, "__author__": "Detectron2"}))
    code, _ = run_tool(tmp_path / "a.pkl", tmp_path / "b.pkl", "--config-file", GN_CONFIG)
    assert code.endswith(
        "a.pkl: it is a checkpoint of detectron2, which is used as it is: give it as MODEL.WEIGHTS"
    )
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(tmp_path / "a.pth")
    code, _ = run_tool(tmp_path / "a.pth", tmp_path / "b.pkl", "--config-file", GN_CONFIG)
    assert "a.pth: the file is a TorchScript program, not weights: save the state_dict()" in code


def test_equal_runs_write_equal_bytes(run_tool, source, tmp_path):
    for name in ("a.pkl", "b.pkl"):
        assert run_tool(source, tmp_path / name, "--config-file", CONFIG, *NARROW)[0] == 0
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()


def test_border_rule_is_noted(run_tool, source, tmp_path):
    opts = [*NARROW, "MODEL.RESNETS.DEFORM_LEGACY_BORDER", "False"]
    code, printed = run_tool(source, tmp_path / "a.pkl", "--config-file", CONFIG, *opts)
    assert code == 0 and "set MODEL.RESNETS.DEFORM_LEGACY_BORDER True" in printed


def test_normalized_boxes(run_tool, source, tmp_path):
    """Without *_test arrays the deltas are taken as they are, or divided by the deviations."""
    states = []
    for i, option in enumerate(([], ["--normalized-boxes"])):
        output = tmp_path / f"{i}.pkl"
        run_tool(source, output, "--config-file", CONFIG, *option, *NARROW)
        states.append(
            pickle.loads(output.read_bytes())["model"]["roi_heads.score_maps.rfcn_bbox.bias"]
        )
    trained = random_arrays(ORIGINAL.parameters())["arg:rfcn_bbox_bias"][196:]
    np.testing.assert_array_equal(states[1], trained)
    np.testing.assert_allclose(states[0], trained * np.repeat([10, 10, 5, 5], 49), rtol=1e-6)


def test_imagenet_classifier_starts_a_model(run_tool, tmp_path):
    """What the file does not have are the heads and offset layers: their start is kept."""
    shapes = ORIGINAL.resnet() | {"arg:fc1000_weight": (1000, 128), "arg:fc1000_bias": (1000,)}
    write_params(tmp_path / "resnet_v1_101-0000.params", random_arrays(shapes))
    source, output = tmp_path / "resnet_v1_101-0000.params", tmp_path / "resnet.pkl"
    code, printed = run_tool(source, output, "--config-file", CONFIG, *NARROW)
    assert code == 0 and "MXNet ImageNet classifier" in printed
    model = build()
    state = {k: torch.from_numpy(v) for k, v in pickle.loads(output.read_bytes())["model"].items()}
    keys = model.load_state_dict(state, strict=False)
    assert not keys.unexpected_keys
    offset = "backbone.res5.0.conv2.conv_offset."
    heads = ("proposal_generator.", "roi_heads.score_maps.", offset)
    assert len(keys.missing_keys) == 6 + 10 + 2
    assert all(key.startswith(heads) for key in keys.missing_keys)
    (reported,) = DetectionCheckpointer(model).load(str(output)).items()
    assert reported == ("__author__", "dcn_projects")


def test_mistakes(run_tool, source, tmp_path):
    output = tmp_path / "model.pkl"
    config = ["--config-file", CONFIG, *NARROW]

    def fails(*arguments):
        code, _ = run_tool(*arguments)
        assert isinstance(code, str) and code.startswith("error: ")
        assert not output.exists()
        return code

    assert "nowhere.params does not exist" in fails(tmp_path / "nowhere.params", output, *config)
    assert "model.zip: the name of a checkpoint ends" in fails(
        source, tmp_path / "model.zip", *config
    )
    assert "unknown kind of weights, expected a .params" in fails(CONFIG, output, *config)
    assert "PIXEL_STD" in fails(source, output, *config, "MODEL.PIXEL_STD", "[57.0, 57.0, 58.0]")
    assert "PIXEL_MEAN" in fails(source, output, *config, "INPUT.FORMAT", "RGB")
    assert "there is no key MODEL.DEPTH" in fails(source, output, *config, "MODEL.DEPTH", "50")
    classes = fails(source, output, *config, "MODEL.ROI_HEADS.NUM_CLASSES", "80")
    assert "arg:rfcn_cls_bias is float32 (1029,), expected float (3969,)" in classes
    assert str(source) in classes
    source.write_bytes(source.read_bytes()[:5000])
    assert f"{source}: array 24 of 103, at byte" in fails(source, output, *config)
    assert os.listdir(tmp_path) == [source.name]


def test_the_folder_of_the_output_is_made(run_tool, source, tmp_path):
    output = tmp_path / "new" / "weights" / "model.pkl"
    assert run_tool(source, output, "--config-file", CONFIG, *NARROW)[0] == 0
    assert os.listdir(output.parent) == [output.name]


def test_source_is_never_overwritten(run_tool, source, tmp_path):
    link = tmp_path / "model.pkl"
    link.symlink_to(source)
    content = source.read_bytes()
    code, _ = run_tool(source, link, "--config-file", CONFIG, *NARROW)
    assert "is the source itself" in code and source.read_bytes() == content


def test_a_failed_write_leaves_the_older_file(run_tool, source, tmp_path, monkeypatch):
    output = tmp_path / "model.pkl"
    output.write_text("an older one")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(pickle, "dump", fail)
    assert "no space left" in run_tool(source, output, "--config-file", CONFIG, *NARROW)[0]
    assert output.read_text() == "an older one"
    assert sorted(os.listdir(tmp_path)) == [output.name, source.name]
