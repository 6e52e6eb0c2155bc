"""Reading the header of a safetensors file, and refusing one that is not whole."""

from __future__ import annotations

import json

import pytest

from studio.core.errors import ModelError
from studio.core.safetensors_header import read_header


def file_of(path, header, data=b"", *, length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_names_types_and_sizes(tmp_path):
    header = {
        "__metadata__": {"format": "pt"}, "a": entry("BF16", [2, 3], 0, 12),
        "b": entry("F32", [], 12, 16), "c": entry("F4", [3], 16, 18),
    }  # fmt: skip
    tensors = read_header(file_of(tmp_path / "x", header, bytes(18)))
    assert {name: t.numel for name, t in tensors.items()} == {"a": 6, "b": 1, "c": 3}
    assert tensors["a"].dtype == "BF16" and tensors["a"].shape == (2, 3)


def test_agrees_with_the_safetensors_package(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    numpy.save_file({"w": np.zeros((3, 5), np.float16), "v": np.ones(7)}, tmp_path / "x")
    tensors = read_header(tmp_path / "x")
    assert {n: (t.dtype, t.shape) for n, t in tensors.items()} == {
        "w": ("F16", (3, 5)), "v": ("F64", (7,)),
    }  # fmt: skip


GOOD = {"a": entry("F32", [2], 0, 8)}
BAD = {
    "cut short": (GOOD, bytes(7)),
    "too long": (GOOD, bytes(9)),
    "outside": ({"a": entry("F32", [2], 8, 16)}, bytes(8)),
    "wrong size": ({"a": entry("F32", [3], 0, 8)}, bytes(8)),
    "negative": ({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
    "fraction": ({"a": entry("F32", [2.0], 0, 8)}, bytes(8)),
    "bool": ({"a": entry("U8", [True], 0, 1)}, bytes(1)),
    "unknown type": ({"a": entry("PICKLE", [2], 0, 8)}, bytes(8)),
    "list": ([1], b""),
    "number": ({"a": 3}, b""),
    "no shape": ({"a": {"dtype": "F32"}}, b""),
    "not json": (b"{{{{", b""),
    "deep": (b"[" * 200_000, b""),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_file_is_refused(tmp_path, name):
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        read_header(file_of(tmp_path / "x.safetensors", *BAD[name]))


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63])
def test_impossible_header_length_is_refused_unread(tmp_path, length):
    with pytest.raises(ModelError, match="impossible length"):
        read_header(file_of(tmp_path / "x", GOOD, bytes(8), length=length))


def test_empty_and_missing_files_are_refused(tmp_path):
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(ModelError):
            read_header(tmp_path / name)
