"""Files of weights hold what was saved in them. They can run nothing, nor take any amount."""

import collections
import io
import os
import pickle
import pickletools
import re
import runpy
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn
from torch.amp import GradScaler

from dcn_projects.checkpoint import (
    PlainCheckpointer,
    check_weights,
    convert_weights,
    load_to_start,
    load_trained,
    read_checkpoint,
)
from dcn_projects.engine import read_config

MATRIX = torch.arange(24.0).reshape(4, 6)
DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool, torch.complex64]
DTYPES += [torch.uint16] if torch.__version__ >= (2, 6) else []  # before, it cannot be saved
TENSORS = {
    "contiguous": MATRIX,
    "transposed": MATRIX.t(),
    "part": MATRIX[1:3, ::2],
    "expanded": torch.ones(1).expand(5),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3.0),
    "parameter": nn.Parameter(torch.ones(2)),
    **{str(dtype): MATRIX.to(dtype) for dtype in DTYPES},
}
PLAIN = {
    "iteration": 7,
    "large": 2**61,
    "betas": (0.9, 0.999),
    "text": "Größe",
    "bytes": b"\xff\0",
    "none": None,
    "flags": [True, False],
    "names": {"a", "b"},
    "size": torch.Size([1, 2]),
    "dtype": torch.float32,
    "milestones": collections.Counter([1, 1, 2]),
    "ap": np.float64(2.5),
    "count": np.int64(3),
}
ARRAYS = {
    "small": np.arange(6, dtype=np.float32).reshape(2, 3),
    "large": np.arange(5000.0).reshape(50, 100),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other byte order": np.arange(3, dtype=">f4"),
    "whole numbers": np.arange(3),
    "none": np.zeros((0, 3)),
    "scalar": np.array(2.0),
}


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape, found.stride()) == (
            *(expected.dtype, expected.shape, expected.stride()),
        )
        assert torch.equal(found, expected.detach())
    elif isinstance(expected, np.ndarray):
        assert found.shape == expected.shape and np.array_equal(found, expected)
        assert found.flags.writeable
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same(one, other)
    else:
        assert type(found) is type(expected) and found == expected


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_saves(tmp_path, zipped, protocol):
    content = {"model": collections.OrderedDict(TENSORS), "arrays": ARRAYS, **PLAIN}
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    torch.save(content, tmp_path / "a.pth", **options)
    found = read_checkpoint(tmp_path / "a.pth")
    assert_same(found, content)
    matrix, part = found["model"]["contiguous"], found["model"]["part"]
    assert matrix.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()


def test_what_trainers_save(tmp_path):
    """Optimizers, schedules and scalers; the numbers of a checkpoint that was the best so far."""
    layer = nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    sgd, adam = torch.optim.SGD(layer.parameters(), 0.1, 0.9), torch.optim.AdamW(layer.parameters())
    content = {"iteration": 9, "metric": np.float64(1.5), "scaler": GradScaler("cpu").state_dict()}
    for optimizer in (sgd, adam):
        optimizer.step()
        content[type(optimizer).__name__] = optimizer.state_dict()
    multiplier = LRMultiplier(sgd, CosineParamScheduler(1, 0), 10)
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd, [3, 5])
    for scheduler in (multiplier, WarmupPolyLR(sgd, 10), steps):
        content[type(scheduler).__name__] = scheduler.state_dict()
    torch.save(content, tmp_path / "a.pth")
    assert_same(read_checkpoint(tmp_path / "a.pth"), content)


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_saves(tmp_path, protocol):
    content = {"model": ARRAYS, "__author__": "me", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    assert_same(read_checkpoint(tmp_path / "a.pkl"), content)


def test_pickles_of_python_2(tmp_path):
    """Of detectron2's model zoo, with NumPy 1: bytes are texts there."""
    numbers = np.float32([1.5, -2])
    (tmp_path / "a.pkl").write_bytes(
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x02tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x08" + numbers.tobytes() + b"tbs."
    )
    assert_same(read_checkpoint(tmp_path / "a.pkl"), {"a": numbers})


class Evil:
    """What is pickled as a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(content, path):
    """A `.pkl`, or a `.pth` in the old format or the new one."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.name != "old.pth")


def strip(path):
    runpy.run_path("tools/strip_checkpoint.py")["strip"](path, path.with_name("b.pth"))


def convert(path):
    cfg = read_config("Mask-RCNN/faster_rcnn_R_50_FPN_2x.yaml", ["MODEL.DEVICE=cpu"])
    convert_weights(path, path.with_name("b.pth"), cfg, {})


LOADERS = {
    "read_checkpoint": read_checkpoint,
    "check_weights": lambda path: check_weights(str(path)),
    "load_trained": lambda path: load_trained(nn.Linear(2, 2), str(path)),
    "load_to_start": lambda path: load_to_start(nn.Linear(2, 2), str(path)),
    "training": lambda path: PlainCheckpointer(nn.Linear(2, 2)).load(str(path)),
    "strip_checkpoint": strip,
    "convert_weights": convert,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["new.pth", "old.pth", "zoo.pkl"])
def test_no_code_is_run(tmp_path, loader, name):
    path, proof = tmp_path / name, tmp_path / "proof"
    write({"model": {"weight": np.ones(2), "evil": Evil(proof)}, "__author__": "me"}, path)
    if loader in ("strip_checkpoint", "convert_weights") and name == "zoo.pkl":
        return  # which both refuse by its name
    with pytest.raises((OSError, ValueError)) as error:
        LOADERS[loader](path)
    assert not proof.exists()
    expected = (
        f"{path} holds objects of posix.mkdir. Only dense tensors, arrays of NumPy, numbers, texts "
        "and plain containers are read: save its parameters alone, with torch.save, as a "
        "dictionary of names"
    )
    assert (
        str(error.value)
        .removeprefix("MODEL.WEIGHTS: ")
        .removeprefix("the checkpoint: ")
        .rstrip(".")
        == expected
    )


@pytest.mark.parametrize("loader", ["load_trained", "load_to_start", "training"])
@pytest.mark.parametrize("name", ["new.pth", "old.pth", "zoo.pkl"])
def test_loaders_do_not_use_torch_or_pickle(tmp_path, monkeypatch, loader, name):
    state = {k: v.numpy() for k, v in nn.Linear(2, 2).state_dict().items()}
    if name != "zoo.pkl":
        state = {k: torch.from_numpy(v) for k, v in state.items()}
    write({"model": state, "__author__": "me"}, tmp_path / name)

    def fail(*args, **kwargs):
        raise AssertionError("not to be called")

    for module, function in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(module, function, fail)
    LOADERS[loader](tmp_path / name)


ATTACKS = {
    "a long text": b"\x80\x04X\xff\xff\xff\x7fa.",
    "more bytes than there are": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",
    "lists in one another": b"\x80\x04" + b"]" * 100 + b"a" * 99 + b".",
    "a list in itself": b"\x80\x04]\x94h\x00a.",
    "tuples as a key": b"\x80\x04})" + b"\x85" * 200_000 + b"Ns.",
    "many lists": b"\x80\x04]" + b"(" + b"]" * 300_000 + b"e.",
    "lists of the same lists": b"\x80\x04]\x94"
    + b"".join(
        b"]\x94(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e"
        for i in range(40)
    )
    + b".",
    "a call without a function": b"\x80\x04K\x01)R.",
    "a function that is none": b"\x80\x04cnumpy\nndarray\n)R.",
    "nothing": b"\x80\x04",
    "no value": b"\x80\x04.",
    "two values": b"\x80\x04NN.",
    "a mark that is missing": b"\x80\x04t.",
    "an array of more numbers": pickle.dumps(np.ones(3), 2).replace(b"K\x03\x85", b"K\x7f\x85", 1),
    "an array of objects": pickle.dumps(np.array([None]), 2),
    "an array of texts": pickle.dumps(np.array(["a"]), 2),
    "a class": pickle.dumps(collections.deque(), 2),
    "an extension": b"\x80\x02\x82\x01.",
    "an old class": b"(i__main__\nX\n.",
    "something outside": b"\x80\x04(X\x07\0\0\0storagetQ.",
    "a tail": pickle.dumps({"model": {}}) + b"a.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_by_pickles(tmp_path, name):
    path = tmp_path / "a.pkl"
    path.write_bytes(ATTACKS[name])
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a\.pkl (is cut off or damaged|holds objects of)") as e:
        read_checkpoint(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert time.process_time() - start < 2


def test_names_of_classes_in_messages(tmp_path):
    """Of a file that would write to the terminal, or fill it."""
    path = tmp_path / "a.pkl"
    names = b"".join(b"X" + struct.pack("<I", 1000) + c * 1000 for c in (b"\x1b", b"\n"))
    path.write_bytes(b"\x80\x04" + names + b"\x93.")
    with pytest.raises(ValueError, match=r"a\.pkl holds objects of \?{100}\. Only dense"):
        read_checkpoint(path)


@pytest.mark.parametrize("size", [(10**15,), (1,) * 100], ids=["elements", "dimensions"])
def test_tensors_larger_than_their_numbers(tmp_path, size):
    """Which take memory as soon as anything is computed of them."""
    torch.save({"model": {"a": torch.ones(1).expand(size)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is cut off or damaged \(a tensor of "):
        read_checkpoint(tmp_path / "a.pth")


def replaced_in_pickle(path, old, new):
    """An archive of torch.save with another pickle, and right checksums."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            assert not name.endswith("data.pkl") or old in content
            archive.writestr(name, content.replace(old, new, 1) if "data.pkl" in name else content)


SIZES = {"storage": (b"Kd%st", b"J\xff\xff\xff\x7f%st"), "tensor": (b"Kd\x85%s", b"K\xc8\x85%s")}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", SIZES)
def test_sizes_of_tensors_are_not_believed(tmp_path, what, zipped):
    """100 numbers, of which the pickle says that they were 2^31, or a tensor of 200 of them."""
    path = tmp_path / "a.pth"
    none = b"N" if what == "storage" and not zipped else b""
    old, new = (pattern % none for pattern in SIZES[what])
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        replaced_in_pickle(path, old, new)
    else:
        assert old in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"a\.pth is cut off or damaged \(.*(left|expected|has)"):
        read_checkpoint(path)


def test_places_in_the_memory_of_a_pickle(tmp_path):
    """Of which the standard library makes room for all: 64 GB."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04Nr\xff\xff\xff\xff0}.")
    assert read_checkpoint(tmp_path / "a.pkl") == {}


def pack(path, content: bytes, method=zipfile.ZIP_DEFLATED, name="a/data.pkl"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)


LIMITS = {
    "bomb": (
        lambda path: pack(path, bytes(100 * 2**20)),
        "would take 100 MiB when it is unpacked, and 64 MiB are the most for an archive of its",
    ),
    "method": (
        lambda path: pack(path, b"a", zipfile.ZIP_BZIP2),
        "is compressed by method 12 of zip: pack it with deflate",
    ),
    "no pickle": (lambda path: pack(path, b"a", name="a/b"), "is not a checkpoint: it has no "),
}


@pytest.mark.parametrize("suffix", ["pth", "npz"])
@pytest.mark.parametrize("name", LIMITS)
def test_archives(tmp_path, name, suffix):
    path = tmp_path / f"a.{suffix}"
    make, message = LIMITS[name]
    make(path)
    if suffix == "npz":  # read_npz, where it is not refused before
        message = message if name != "no pickle" else ": unknown kind of weights, expected"
    with pytest.raises(ValueError) as error:
        convert(path) if suffix == "npz" else read_checkpoint(path)
    assert f"a.{suffix}" in str(error.value) and message in str(error.value)


def test_encrypted_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(3))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the list of entries
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is encrypted: unpack it, and pack it without a"):
        convert(path)


def test_another_byte_order(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else content)
    with pytest.raises(ValueError, match="another byte order: save it on a machine of this kind"):
        read_checkpoint(tmp_path / "a.pth")


def test_values_that_are_not_finite_do_not_start_a_training(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    state["bias"][1] = float("nan")
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth: it has values in bias that are not finite"):
        load_to_start(nn.Linear(2, 2), str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="a.pth has values in bias that are not finite"):
        strip(tmp_path / "a.pth")


def test_what_is_not_in_the_file_may_be_infinite(tmp_path):
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pth")
    model = nn.Linear(2, 2)
    model.register_buffer("least", torch.tensor(float("inf")))
    assert load_to_start(model, str(tmp_path / "a.pth")) == {"least"}


def test_nothing_else_reads_pickles():
    """Nor arrays, which may be pickled, nor YAML with objects."""
    reads = re.compile(
        r"\b(torch\.load|(pickle|joblib|dill)\.loads?|Unpickler|np\.load|unsafe_load)\("
    )
    for folder in ("dcn_projects", "tools", "demo", "benchmarks"):
        for path in Path(folder).rglob("*.py"):
            assert not reads.search(path.read_text()), path


def test_the_position_behind_a_pickle():
    """On which the reading of files of several pickles relies."""
    file = io.BytesIO(pickle.dumps(1) + b"behind")
    assert list(pickletools.genops(file)) and file.read() == b"behind"
