"""The parameter file's layout, from the header alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from compiler.contracts.errors import CheckpointError
from compiler.contracts.weights import (
    DTYPES,
    CheckpointRef,
    StoredTensor,
    quantize,
    source,
    transpose,
)
from compiler.params_file import params_layout, write_params


def test_names_are_sorted_and_gaps_are_tensors() -> None:
    layout = params_layout(
        {
            "z": source("z", (16,), "float32"),
            "a": source("a", (3,), "bfloat16"),
            "m": source("m", (65,), "int8"),
        }
    )
    header = json.loads(layout.header[8:])
    assert {name: tuple(entry["data_offsets"]) for name, entry in header.items()} == {
        "a": (0, 6),
        "_padding.1": (6, 64),
        "m": (64, 129),
        "_padding.3": (129, 192),
        "z": (192, 256),
    }
    assert header["_padding.3"] == {"data_offsets": [129, 192], "dtype": "U8", "shape": [63]}
    assert len(layout.header) == 4096
    assert layout.nbytes == 4096 + 256
    assert list(layout.tensors) == ["a", "m", "z"]


def test_a_long_header_still_ends_at_a_page() -> None:
    layout = params_layout({f"layer.{n}": source("w", (64,), "int8") for n in range(200)})
    assert len(layout.header) % 4096 == 0
    assert len(layout.header) > 4096


def test_the_order_of_the_mapping_does_not_matter() -> None:
    weights = {name: source(name, (5,), "float16") for name in "cab"}
    assert params_layout(weights) == params_layout(dict(sorted(weights.items())))


def test_a_name_of_a_padding_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match=r"_padding\.7 is the name of a padding"):
        params_layout({"_padding.7": source("w", (1,), "int8")})


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_is_written_as_it_is(tmp_path: Path, dtype: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 13 * 3 * DTYPES[dtype].itemsize, np.uint8)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"skip" + raw.tobytes())
    stored = StoredTensor(file, offset=4, shape=(13, 3), dtype=dtype)
    checkpoint = CheckpointRef(tmp_path, {}, {"w": stored}, digest="")
    layout = params_layout({"w": source("w", (13, 3), dtype)})
    path = tmp_path / "rank0.safetensors"
    counts: list[int] = []
    write_params(path, layout, checkpoint, written=counts.append)
    assert path.read_bytes()[len(layout.header) :][: len(raw)] == raw.tobytes()
    assert sum(counts) == path.stat().st_size == layout.nbytes
    with safe_open(path, "numpy") as opened:
        assert opened.get_slice("w").get_shape() == [13, 3]


def test_a_weight_that_has_no_int8_is_named(tmp_path: Path) -> None:
    matrix = np.ones((5, 4), np.float32)
    matrix[3, 1] = np.nan
    file = tmp_path / "weights.bin"
    file.write_bytes(matrix.tobytes())
    stored = StoredTensor(file, offset=0, shape=matrix.shape, dtype="float32")
    checkpoint = CheckpointRef(tmp_path, {}, {"up.weight": stored}, digest="")
    codes = transpose(quantize(source("up.weight", matrix.shape, "float32"), axis=0))
    layout = params_layout({"layer.up": codes})
    with pytest.raises(CheckpointError) as caught:
        write_params(tmp_path / "rank0", layout, checkpoint, written=lambda _count: None)
    assert caught.value.message.startswith("row 3 holds NaN or infinity")
    assert caught.value.where == "up.weight"
