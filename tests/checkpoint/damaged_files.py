"""
Small files of weights of every format, what can happen to them, and the programs that read them.

    python -m tests.checkpoint.damaged_files 5000

damages the file of each format so many times, and prints what became of it.
"""

import contextlib
import functools
import io
import logging
import pickle
import resource
import runpy
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dcn_projects.checkpoint import (
    check_weights,
    convert_weights,
    load_to_start,
    load_trained,
    read_checkpoint,
)
from dcn_projects.engine import read_config
from dcn_projects.errors import error_line
from tests.checkpoint.params_writer import write_params

RANDOM = np.random.default_rng(0)
# A file of each format -> what reads it, and whether it has checksums.
FORMATS = {
    "zip.pth": (["check", "trained", "start", "strip", "convert"], True),
    "packed.pth": (["check", "trained", "start", "strip", "convert"], True),
    "old.pth": (["check", "trained", "start", "strip", "convert"], False),
    "zoo.pkl": (["check", "trained", "start"], False),
    "caffe2.pkl": (["check", "start"], False),
    "plain.npz": (["convert"], True),
    "packed.npz": (["convert"], True),
    "mxnet.params": (["convert"], False),
}
CONFIGS = {".params": "FPN/fpn_R_101_coco.yaml"}
CONFIG = "Mask-RCNN/faster_rcnn_R_50_FPN_2x.yaml"
NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f"]


def array(*shape):
    return RANDOM.random(shape, np.float32)


def with_norms(arrays: dict, norms: list[str], kinds: list[str]) -> dict:
    return {**arrays, **{kind.format(norm): array(4) for norm in norms for kind in kinds}}


def make_model() -> nn.Module:
    """With names of torchvision, of which convert_weights takes the first convolutions."""
    block = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1, bias=False), "bn1": nn.BatchNorm2d(4)})
    layers = {"conv1": nn.Conv2d(3, 4, 7, bias=False), "bn1": nn.BatchNorm2d(4)}
    return nn.ModuleDict({**layers, "layer1": nn.ModuleDict({"0": block})})


def make_stem() -> nn.Module:
    stem = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 7, bias=False)})
    return nn.ModuleDict({"backbone": nn.ModuleDict({"stem": stem})})


def converted_shapes() -> dict:
    shapes = {"stem.conv1.weight": (4, 3, 7, 7), "res2.0.conv1.weight": (4, 4, 1, 1)}
    for norm in ("stem.conv1.norm", "res2.0.conv1.norm"):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{kind}"] = (4,)
    return {f"backbone.bottom_up.{name}": shape for name, shape in shapes.items()}


def write_files(folder: Path) -> None:
    """One of each format."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    trainer = {"iteration": 3, "_trainer": {"optimizer": optimizer.state_dict()}}
    content = {"model": model.state_dict(), "trainer": trainer, "iteration": 3, "ap": np.float64(2)}
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    repack(folder / "zip.pth", folder / "packed.pth", zipfile.ZIP_DEFLATED)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    write_pickle(folder / "zoo.pkl", {"model": arrays, "__author__": "me"}, 4)
    write_pickle(folder / "caffe2.pkl", {"blobs": {"conv1_w": array(4, 3, 7, 7)}}, 2)
    arrays = {"conv0/W": array(7, 7, 3, 4), "group0/block0/conv1/W": array(1, 1, 4, 4)}
    kinds = ["{}/bn/gamma", "{}/bn/beta", "{}/bn/mean/EMA", "{}/bn/variance/EMA"]
    arrays = with_norms(arrays, ["conv0", "group0/block0/conv1"], kinds)
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    arrays = {"conv1_weight": array(4, 3, 7, 7), "res2a_branch2a_weight": array(4, 4, 1, 1)}
    arrays = {f"arg:{name}": value for name, value in arrays.items()}
    kinds = ["arg:{}_gamma", "arg:{}_beta", "aux:{}_moving_mean", "aux:{}_moving_var"]
    write_params(folder / "mxnet.params", with_norms(arrays, ["bn_conv1", "bn2a_branch2a"], kinds))


def write_pickle(path: Path, content, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


def repack(source: Path, target: Path, method: int, changed=lambda name, content: content) -> None:
    """An archive with the right checksums of whatever its entries are now."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, changed(name, old.read(name)))


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """What disks, networks and hands do to files: a few of it, mostly where the structure is."""
    for _ in range(rng.integers(1, 3)):
        size = len(content)
        near = int(rng.integers(1, 600))
        at = int(rng.choice([rng.integers(size + 1), min(near, size), max(size - near, 0)]))
        length = int(rng.integers(1, 40))
        before, part, after = content[:at], content[at : at + length], content[at + length :]
        changed = bytes(rng.integers(0, 256, length, dtype=np.uint8))
        flipped = bytes(b ^ (1 << int(rng.integers(8))) for b in part[:1]) + part[1:]
        number = NUMBERS[rng.integers(len(NUMBERS))]
        options = [changed, flipped, flipped, flipped, b"", part * 2, bytes(len(part))]
        options += [number + part[len(number) :], part + changed, part[::-1]]
        kind = int(rng.integers(len(options) + 1))
        content = before if kind == len(options) else before + options[kind] + after
    return content


def damage_entry(source: Path, target: Path, rng: np.random.Generator) -> None:
    """Something in an archive, of which the checksum is right."""
    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
    pickles = [name for name in names if name.endswith(("data.pkl", ".npy"))]
    chosen = str(rng.choice(pickles))
    repack(
        source,
        target,
        zipfile.ZIP_STORED,
        lambda name, content: damage(content, rng) if name == chosen else content,
    )


@functools.cache
def config(suffix: str):
    return read_config(CONFIGS.get(suffix, CONFIG), ["MODEL.DEVICE=cpu"])


@functools.cache
def strip():
    return runpy.run_path("tools/strip_checkpoint.py")["strip"]


def read_with(program: str, path: Path) -> dict[str, torch.Tensor]:
    """
    Returns:
        what the program makes of a file, name -> tensor
    Raises:
        OSError, ValueError: if it refuses the file
    """
    output = path.with_name("output.pth")
    if program == "check":
        check_weights(str(path))
        return {}
    if program in ("trained", "start"):
        model = make_stem() if path.name == "caffe2.pkl" else make_model()
        {"trained": load_trained, "start": load_to_start}[program](model, str(path))
        return model.state_dict()
    if program == "convert":
        convert_weights(path, output, config(path.suffix), converted_shapes())
    else:
        strip()(path, output)
    return read_checkpoint(output)["model"]


def outcome(program: str, path: Path, expected: dict | None) -> str:
    """
    What a program does with a damaged file: "refused", or "equal" or "other" values.

    Args:
        expected: what it makes of the undamaged file, if it must be that
    Raises:
        AssertionError, or any other exception: if it does anything else
    """
    start = time.process_time()
    try:
        read = read_with(program, path)
    except (OSError, ValueError) as e:
        message = error_line(e)  # as programs print it
        assert path.name in message and "\n" not in message and len(message) < 1000, message
        assert "weights_only" not in message, message
        return "refused"
    finally:
        assert time.process_time() - start < 2
    assert all(tensor.isfinite().all() for tensor in read.values())
    if expected is None:
        return "read"
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name
    return "equal"


@contextlib.contextmanager
def silence():
    """Of loggers, and of torch's warnings about arrays that cannot be written to."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def try_damaged(name: str, folder: Path, count: int, seed: int) -> Counter:
    """
    Damage one of `write_files`, and give it to all that reads its format.

    Returns:
        Counter: (program, what it did) -> how often
    """
    programs, has_checksums = FORMATS[name]
    whole, path = folder / name, folder / "damaged" / name
    path.parent.mkdir(exist_ok=True)
    rng, found = np.random.default_rng(seed), Counter()
    with silence():
        expected = {program: read_with(program, whole) for program in programs}
        for number in range(count):
            by_hand = has_checksums and number % 3 == 2
            if by_hand:
                damage_entry(whole, path, rng)
            else:
                path.write_bytes(damage(whole.read_bytes(), rng))
            for program in programs:
                right = expected[program] if has_checksums and not by_hand else None
                try:
                    found[program, outcome(program, path, right)] += 1
                except BaseException:
                    kept = Path(tempfile.gettempdir()) / f"{number}-{name}"
                    kept.write_bytes(path.read_bytes())
                    print(f"{program} of {kept}", file=sys.stderr)
                    raise
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for seed, name in enumerate(FORMATS):
            start = time.perf_counter()
            found = try_damaged(name, Path(folder), int(sys.argv[1]), seed)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            words = ", ".join(f"{' '.join(key)} {n}" for key, n in sorted(found.items()))
            seconds = time.perf_counter() - start
            print(f"{name}: {words}; {seconds:.0f} s, at most {peak:.0f} MiB so far", flush=True)


if __name__ == "__main__":
    main()
