"""Reads what MXNet writes, and nothing else: a file that is damaged anywhere is an error."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcn_projects.checkpoint.mxnet_params import read_params
from tests.checkpoint.params_writer import (
    DTYPES,
    VERSIONS,
    array_bytes,
    list_bytes,
    write_params,
)

# A file of one array, arg:w = [[1.5, -2]], float16, on a GPU, byte by byte as the format has it.
LITERAL = bytes.fromhex(
    "1201000000000000 0000000000000000 0100000000000000"
    "c9fa93f9 00000000 02000000 0100000000000000 0200000000000000"
    "02000000 03000000 02000000 003e 00c0"
    "0100000000000000 0500000000000000 6172673a77"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net-0000.params"


def test_known_bytes(path):
    path.write_bytes(LITERAL)
    (array,) = read_params(path).values()
    assert array.dtype == np.float16 and array.tolist() == [[1.5, -2.0]]
    write_params(path, {"arg:w": array})  # the writer below, but for the device
    assert path.read_bytes() == LITERAL.replace(
        b"\x02\0\0\0\x03\0\0\0\x02\0\0\0", b"\x01\0\0\0\0\0\0\0\x02\0\0\0"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_all_dtypes(path, version):
    values = np.arange(24).reshape(2, 3, 1, 4)
    arrays = {f"arg:{d}": values.astype(d) for d in DTYPES} | {"aux:one": np.ones(1, np.float32)}
    write_params(path, arrays, version)
    read = read_params(path)
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_versions_may_be_mixed(path):
    array = np.arange(3.0, dtype="<f4")
    records = [array_bytes(array + i, v) for i, v in enumerate(VERSIONS)]
    path.write_bytes(list_bytes(records, list(VERSIONS)))
    assert [a[0] for a in read_params(path).values()] == [0, 1, 2, 3]


def test_scalar_and_empty_arrays_of_v3(path):
    arrays = {"arg:scalar": np.array(2.5), "arg:empty": np.zeros((0, 3), "<f4")}
    write_params(path, arrays, "V3")
    read = read_params(path)
    assert read["arg:scalar"] == 2.5 and read["arg:empty"].shape == (0, 3)


def test_no_arrays(path):
    write_params(path, {})
    assert read_params(path) == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_off_anywhere(path, version):
    arrays = {"arg:a": np.ones((2, 3), np.float32), "aux:b": np.ones(2)}
    write_params(path, arrays, version)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"net-0000\.params: .*, at byte \d+: "):
            read_params(path)


def record(rank=2, shape=(2, 3), code=0, storage=0, values=24):
    """An array of V2 whose parts need not fit."""
    head = struct.pack("<Iii", VERSIONS["V2"], storage, rank)
    return head + struct.pack(f"<{len(shape)}q3i", *shape, 1, 0, code) + bytes(values)


@pytest.mark.parametrize(
    "damaged, message",
    [
        (record(shape=(2, -3)), r"array 2 of 2, at byte \d+: .*impossible shape, \(2, -3\)"),
        (record(shape=(2**62, 3)), "impossible shape"),
        (record(shape=(2**62, 0)), "impossible shape"),
        (record(shape=(2**40, 2)), r"array 2 of 2, .*\D\d{13} bytes expected"),
        (record(rank=-1), "rank of -0x1"),
        (record(rank=33, shape=(1,) * 33), "rank of 0x21"),
        (record(rank=0, shape=(), values=0)[:12], "arg:b has no shape and no values"),
        (record(code=12), "unknown dtype 12"),
        (record(code=-1), "unknown dtype -1"),
        (record(storage=1), "row-sparse, only dense"),
        (record(storage=2), "compressed sparse row, only dense"),
        (record(storage=-1), "storage type -1"),
        (struct.pack("<I", 0xF993FACB) + bytes(100), "rank of 0xf993facb: damaged"),
    ],
)
def test_damaged_array(path, damaged, message):
    good = array_bytes(np.ones(3, np.float32))
    path.write_bytes(list_bytes([good, damaged], ["arg:a", "arg:b"]))
    with pytest.raises(ValueError, match=message) as error:
        read_params(path)
    assert str(path) in str(error.value)


ONE = array_bytes(np.ones(3, np.float32))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"PK\x03\x04" + bytes(100), "starts with 0x4034b50 instead of 0x112"),
        (b"", "the header, at byte 0: the file is cut off"),
        (struct.pack("<QQQ", 0x112, 0, 2**64 - 1) + bytes(100), "the number of arrays"),
        (list_bytes([ONE], ["a"]) + b"\0", "the end, .* 1 bytes follow"),
        (list_bytes([ONE, ONE], ["a", "a"]), "a is there twice"),
        (list_bytes([ONE], [b"\xff"]), "name of array 1 of 1, .* cannot be the name"),
        (list_bytes([ONE], ["a\nb"]), r"'a\\nb' cannot be the name"),
        (list_bytes([ONE], [""]), "'' cannot be the name"),
        (list_bytes([ONE], ["a" * 5000]), "'a{40}' cannot be the name"),
        (list_bytes([bytes(4)] * 100_001, []), "100001 are more than a network has"),
        (list_bytes([ONE], []), "1 arrays and 0 names"),
        (list_bytes([ONE], ["a"])[:-9] + struct.pack("<Q", 2**63) + b"a", "name of array 1 of 1"),
    ],
)
def test_damaged_list(path, content, message):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_params(path)


def test_sizes_are_checked_before_memory_is_taken(path):
    path.write_bytes(list_bytes([record(shape=(2**35, 1))], ["arg:a"]))
    tracemalloc.start()
    with pytest.raises(ValueError):
        read_params(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_params(tmp_path / "nowhere.params")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(VERSIONS)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_a_value_error(tmp_path_factory, version, changes):
    path = tmp_path_factory.mktemp("damaged") / "net.params"
    write_params(path, {"arg:a": np.ones((2, 3), "<f4"), "aux:b": np.ones(2)}, version)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content)
    try:
        read_params(path)
    except ValueError:
        pass
