"""Weight expressions against numpy, whole and in chunks; and the reads beneath them."""

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from compiler.contracts import weight_values
from compiler.contracts.errors import CheckpointError
from compiler.contracts.weight_values import chunks, rows, value
from compiler.contracts.weights import (
    DTYPES,
    CheckpointRef,
    StoredTensor,
    Weight,
    calibrated,
    cast,
    concat,
    cut,
    pack,
    quantize,
    scale,
    source,
    transpose,
    unpacked,
    zeros,
)

TABLE = np.random.default_rng(3).standard_normal((10, 6)).astype(np.float32)
OTHER = np.random.default_rng(4).standard_normal((4, 6)).astype(np.float32)
LARGE = np.random.default_rng(5).standard_normal((70, 40)).astype(np.float32)
CODES = np.random.default_rng(6).integers(-127, 128, (70, 40)).astype(np.int8)
ARRAYS = {"table": TABLE, "other": OTHER, "vector": TABLE[0], "large": LARGE, "codes": CODES}


def read(name: str, start: int, stop: int) -> np.ndarray:
    return ARRAYS[name][start:stop]


def stored(name: str) -> Weight:
    return source(name, ARRAYS[name].shape, "float32")


def int8_of(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 of each row and its float32 scales, entry by entry as the definition has them."""
    codes, scales = np.zeros(matrix.shape, np.int8), np.ones(len(matrix), np.float32)
    for channel, row in enumerate(matrix):
        largest = np.float32(max(abs(entry) for entry in row))
        if largest >= 127 * np.finfo(np.float32).tiny:
            scales[channel] = largest / np.float32(127)
            codes[channel] = [round(float(entry / scales[channel])) for entry in row]
    return codes, scales


def packed(matrix: np.ndarray, q: int) -> np.ndarray:
    """Tiles entry by entry, as the definition has them."""
    outputs, inputs = matrix.shape
    shape = (-(-outputs // 32), -(-inputs // (16 * q)), 2, 16, 16, q)
    found = np.zeros(shape, matrix.dtype)
    for n, k, t, r, c, i in np.ndindex(shape):
        output, entry = 32 * n + 16 * t + c, 16 * q * k + q * r + i
        if output < outputs and entry < inputs:
            found[n, k, t, r, c, i] = matrix[output, entry]
    return found


TILES = pack(source("codes", CODES.shape, "int8"))
BF16 = np.dtype(ml_dtypes.bfloat16)
EXPRESSIONS: dict[str, tuple[Weight, np.ndarray]] = {
    "source": (stored("table"), TABLE),
    "transpose": (transpose(stored("table")), TABLE.T),
    "cast": (cast(stored("table"), "bfloat16"), TABLE.astype(BF16)),
    "concat": (concat([stored("table"), stored("other")]), np.concatenate([TABLE, OTHER])),
    "rows of a concat": (
        cut(concat([stored("table"), stored("other"), stored("table")]), 0, 9, 16),
        np.concatenate([TABLE, OTHER, TABLE])[9:16],
    ),
    "slice of rows": (cut(stored("table"), 0, 2, 7), TABLE[2:7]),
    "slice of columns": (cut(stored("table"), 1, 1, 4), TABLE[:, 1:4]),
    "transpose of a concat": (
        transpose(concat([stored("table"), stored("other")])),
        np.concatenate([TABLE, OTHER]).T,
    ),
    "slice of a cast transpose": (
        cut(cast(transpose(stored("table")), "float16"), 1, 3, 8),
        TABLE.T.astype(np.float16)[:, 3:8],
    ),
    "cast of a slice of a transpose": (
        cast(cut(transpose(stored("table")), 0, 1, 5), "bfloat16"),
        TABLE.T[1:5].astype(BF16),
    ),
    "int8 of rows": (quantize(stored("table"), axis=0), int8_of(TABLE)[0]),
    "int8 of columns": (quantize(stored("table"), axis=1), int8_of(TABLE.T)[0].T),
    "scales of rows": (scale(stored("table"), axis=0), int8_of(TABLE)[1]),
    "scales of columns": (scale(stored("table"), axis=1), int8_of(TABLE.T)[1]),
    "int8 of a transpose's columns": (
        quantize(transpose(stored("table")), axis=1),
        int8_of(TABLE)[0].T,
    ),
    "int8 of a concat": (
        quantize(concat([stored("table"), stored("other")]), axis=0),
        int8_of(np.concatenate([TABLE, OTHER]))[0],
    ),
    "scales of a transposed concat": (
        scale(transpose(concat([stored("table"), stored("other")])), axis=1),
        int8_of(np.concatenate([TABLE, OTHER]))[1],
    ),
    "int8 of a narrowed slice": (
        quantize(cast(cut(stored("table"), 1, 1, 5), "bfloat16"), axis=0),
        int8_of(TABLE[:, 1:5].astype(ml_dtypes.bfloat16).astype(np.float32))[0],
    ),
    "zeros": (zeros((3, 6), "float16"), np.zeros((3, 6), np.float16)),
    "rows padded with zeros": (
        cut(cast(concat([stored("table"), zeros((4, 6), "float32")]), "bfloat16"), 0, 8, 13),
        np.concatenate([TABLE, np.zeros((4, 6))]).astype(BF16)[8:13],
    ),
    "transpose of padded rows": (
        transpose(concat([stored("table"), zeros((2, 6), "float32")])),
        np.concatenate([TABLE, np.zeros((2, 6), np.float32)]).T,
    ),
    "vector": (cast(stored("vector"), "float16"), TABLE[0].astype(np.float16)),
    "packed bfloat16": (
        pack(cast(stored("large"), "bfloat16")),
        packed(ARRAYS["large"].astype(BF16), 2),
    ),
    "packed float16 of a transpose": (
        pack(cast(transpose(stored("large")), "float16")),
        packed(ARRAYS["large"].T.astype(np.float16), 2),
    ),
    "packed int8": (
        pack(quantize(stored("large"), axis=0)),
        packed(int8_of(ARRAYS["large"])[0], 4),
    ),
    "packed int8 of a padded concat": (
        pack(quantize(concat([stored("large"), zeros((5, 40), "float32")]), axis=0)),
        packed(int8_of(np.concatenate([ARRAYS["large"], np.zeros((5, 40), np.float32)]))[0], 4),
    ),
    "packed columns": (
        pack(cut(cast(stored("large"), "bfloat16"), 1, 3, 36)),
        packed(ARRAYS["large"][:, 3:36].astype(BF16), 2),
    ),
    "packed calibrated codes": (
        pack(calibrated(quantize(stored("large"), axis=0), "codes")),
        packed(ARRAYS["codes"], 4),
    ),
}


@pytest.fixture(params=EXPRESSIONS)
def case(request: pytest.FixtureRequest) -> tuple[Weight, np.ndarray]:
    return EXPRESSIONS[request.param]


# -- values


def test_value_equals_numpy(case: tuple[Weight, np.ndarray]):
    weight, wanted = case
    found = value(weight, read)
    assert found.dtype == wanted.dtype == DTYPES[weight.dtype]
    assert found.shape == wanted.shape == weight.shape
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()
    assert weight.nbytes == wanted.nbytes


@pytest.mark.parametrize("limit", [1, 48, 100, 1 << 20])
def test_chunks_join_to_the_whole(case: tuple[Weight, np.ndarray], limit: int):
    weight, wanted = case
    blocks = list(chunks(weight, read, limit=limit))
    row_bytes = wanted.nbytes // len(wanted)
    assert max(block.nbytes for block in blocks) <= max(limit, row_bytes)
    assert np.concatenate(blocks).tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_any_rows_equal_those_of_the_whole(case: tuple[Weight, np.ndarray]):
    weight, wanted = case
    for start in range(len(wanted)):
        for stop in range(start + 1, len(wanted) + 1):
            np.testing.assert_array_equal(rows(weight, read, start, stop), wanted[start:stop])


def test_a_transpose_reads_its_operand_in_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weight_values, "CHUNK_BYTES", 4 * 48)
    asked: list[tuple[int, int]] = []

    def recorded(name: str, start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return read(name, start, stop)

    np.testing.assert_array_equal(rows(transpose(stored("table")), recorded, 1, 3), TABLE.T[1:3])
    assert asked == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


def test_a_slice_of_rows_reads_no_others():
    asked: list[tuple[int, int]] = []

    def recorded(name: str, start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return read(name, start, stop)

    value(cut(stored("table"), 0, 4, 6), recorded)
    assert asked == [(4, 6)]


def test_a_packed_block_reads_its_own_rows():
    asked: list[tuple[int, int]] = []

    def recorded(name: str, start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return read(name, start, stop)

    weight = pack(cast(stored("large"), "bfloat16"))
    assert (weight.shape, weight.nbytes) == ((3, 2, 2, 16, 16, 2), 96 * 64 * 2)
    blocks = list(chunks(weight, recorded, limit=1))
    assert asked == [(0, 32), (32, 64), (64, 70)]
    np.testing.assert_array_equal(np.concatenate(blocks), value(weight, read))


def test_an_overflow_is_infinity_and_no_warning():
    big = {"big": np.array([7e4, -7e4], np.float32)}
    found = value(cast(source("big", (2,), "float32"), "float16"), lambda n, a, b: big[n][a:b])
    assert found.tolist() == [np.inf, -np.inf]


def test_rounding_is_to_nearest_even():
    # Halfway between two neighbours of bfloat16: 1 + 2^-8 goes down, 1 + 3 * 2^-8 up.
    halves = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8], np.float32)
    found = value(cast(source("h", (2,), "float32"), "bfloat16"), lambda _n, a, b: halves[a:b])
    assert found.astype(np.float32).tolist() == [1.0, 1 + 4 * 2.0**-8]


# -- int8


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dtype = {"V": "bfloat16"}.get(matrix.dtype.kind, matrix.dtype.name)
    operand = source("matrix", matrix.shape, dtype)

    def given(_name: str, start: int, stop: int) -> np.ndarray:
        return matrix[start:stop]

    return value(quantize(operand, axis=0), given), value(scale(operand, axis=0), given)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_int8_equals_the_definition_to_the_bit(dtype: str):
    spread = np.random.default_rng(5).standard_normal((400, 33)) * np.logspace(-3, 3, 400)[:, None]
    matrix = spread.astype(DTYPES[dtype])
    codes, scales = quantized(matrix)
    wanted_codes, wanted_scales = int8_of(matrix.astype(np.float32))
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert codes.tobytes() == wanted_codes.tobytes()
    assert scales.tobytes() == wanted_scales.tobytes()
    assert np.abs(codes.astype(np.int64)).max(axis=1).tolist() == [127] * 400


def test_int8_rounds_half_to_even():
    halves = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float32)
    codes, scales = quantized(halves)
    assert (codes.tolist(), scales.tolist()) == ([[127, 0, 2, 2, 0, -2]], [1.0])


def test_a_channel_of_zeros_or_of_almost_zeros_is_zeros():
    tiny = np.finfo(np.float32).tiny
    matrix = np.zeros((4, 3), np.float32)
    matrix[1] = [100 * tiny, -100 * tiny, tiny / 8]
    matrix[2] = [127 * tiny, -tiny, 0]
    codes, scales = quantized(matrix)
    assert codes.tolist() == [[0, 0, 0], [0, 0, 0], [127, -1, 0], [0, 0, 0]]
    assert scales.tolist() == [1, 1, tiny, 1]


def test_the_largest_numbers_do_not_overflow():
    largest = np.finfo(np.float32).max
    codes, scales = quantized(np.array([[largest, -largest, 0]], np.float32))
    assert codes.tolist() == [[127, -127, 0]]
    assert np.isfinite(scales).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("build", [quantize, scale])
def test_what_has_no_int8_is_named(build: Callable[..., Weight], wrong: float):
    arrays = {"good": TABLE, "bad": OTHER.copy()}
    arrays["bad"][2, 1] = wrong
    joined = transpose(
        concat([source(name, array.shape, "float32") for name, array in arrays.items()])
    )
    with pytest.raises(CheckpointError) as caught:
        value(build(joined, axis=1), lambda name, start, stop: arrays[name][start:stop])
    assert caught.value.message == "row 2 holds NaN or infinity, which int8 has no value for"
    assert caught.value.where == "bad"


@pytest.mark.parametrize("build", [quantize, scale])
def test_int8_is_made_of_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, build: Callable[..., Weight]
):
    monkeypatch.setattr(weight_values, "CHUNK_BYTES", 4 * 3 * 24)
    asked: list[tuple[int, int]] = []

    def recorded(name: str, start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return read(name, start, stop)

    value(build(stored("table"), axis=0), recorded)
    assert asked == [(0, 3), (3, 6), (6, 9), (9, 10)]
    asked.clear()
    value(quantize(transpose(stored("table")), axis=1), recorded)
    assert max(stop - start for start, stop in asked) == 3


def test_int8_does_not_depend_on_what_changes_no_row():
    half = source("half", (4, 6), "bfloat16")
    assert quantize(cast(half, "float32"), axis=0) == quantize(half, axis=0)
    assert quantize(transpose(half), axis=1) == transpose(quantize(half, axis=0))
    joined = concat([half, half])
    assert quantize(joined, axis=0) == concat([quantize(half, axis=0)] * 2)
    assert scale(cast(joined, "float32"), axis=0).key == "concat(scale(half), scale(half))"
    narrowed = cast(stored("table"), "bfloat16")
    assert quantize(narrowed, axis=0).key == "quantize(cast(table, bfloat16))"


# -- simplification


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
@pytest.mark.parametrize("last", ["bfloat16", "float16", "float32"])
def test_skipping_a_widening_is_exact_for_every_value(narrow: str, last: str):
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[narrow])
    simple = cast(cast(source("every", every.shape, narrow), "float32"), last)
    assert "float32" not in simple.key or last == "float32"
    with np.errstate(all="ignore"):  # a signalling NaN is among them
        found = value(simple, lambda _name, start, stop: every[start:stop])
        wanted = every.astype(np.float32).astype(DTYPES[last])
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))


def test_a_narrowing_is_kept():
    narrowed = cast(cast(stored("table"), "bfloat16"), "float32")
    assert narrowed.key == "cast(cast(table, bfloat16), float32)"
    np.testing.assert_array_equal(value(narrowed, read), TABLE.astype(BF16).astype(np.float32))


def test_only_what_float32_holds_exactly_skips_it():
    # An int32 is rounded on its way to float32.
    whole = np.array([2049 * 2**14 + 1], np.int32)
    twice = cast(cast(source("whole", (1,), "int32"), "float32"), "bfloat16")
    assert twice.key == "cast(cast(whole, float32), bfloat16)"
    found = value(twice, lambda _name, start, stop: whole[start:stop])
    assert found.tobytes() == whole.astype(np.float32).astype(BF16).tobytes()


def test_a_cast_to_its_own_dtype_is_the_operand():
    assert cast(stored("table"), "float32") == stored("table")
    half = source("half", (4,), "float16")
    assert cast(cast(half, "float32"), "float16") == half


def test_a_transpose_of_a_transpose_is_the_operand():
    assert transpose(transpose(stored("table"))) == stored("table")
    assert transpose(stored("table")).shape == (6, 10)
    narrowed = cast(stored("table"), "float16")
    assert transpose(cast(transpose(stored("table")), "float16")) == narrowed


# -- keys and sources


def test_keys_are_the_expression():
    half = source("model.norm.weight", (8, 2), "float16")
    assert half.key == "model.norm.weight"
    assert cast(transpose(half), "float32").key == "cast(transpose(model.norm.weight), float32)"
    assert cut(half, 0, 3, 8).key == "slice(model.norm.weight, 0, 3, 8)"
    assert pack(half).key == "pack(model.norm.weight)"
    assert pack(quantize(half, axis=0)).key == "pack(quantize(model.norm.weight))"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cut(stored("table"), 0, 1, 3), cut(stored("table"), 0, 1, 4)),
        (cut(stored("table"), 0, 1, 3), cut(stored("table"), 1, 1, 3)),
        (cast(stored("table"), "float16"), cast(stored("table"), "bfloat16")),
        (concat([stored("table"), stored("other")]), concat([stored("other"), stored("table")])),
        (stored("table"), transpose(stored("table"))),
    ],
)
def test_different_bytes_have_different_keys(one: Weight, other: Weight):
    assert one.key != other.key


def test_equal_expressions_have_equal_keys():
    one = cast(transpose(stored("table")), "float16")
    assert one.key == cast(transpose(stored("table")), "float16").key
    assert one == cast(transpose(stored("table")), "float16")


def test_what_is_packed_is_found_again():
    codes = quantize(stored("large"), axis=0)
    assert unpacked(pack(codes)) is codes
    assert unpacked(codes) is codes


def test_sources_are_in_order_and_repeated():
    joined = concat([stored("table"), cut(stored("other"), 0, 0, 2), stored("table")])
    assert cast(transpose(joined), "float16").sources() == ("table", "other", "table")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: transpose(stored("vector")), r"transpose of \(6,\)"),
        (lambda: cast(stored("table"), "float64"), "cast to float64"),
        (lambda: source("x", (1,), "complex64"), "x has dtype complex64"),
        (lambda: quantize(stored("vector"), axis=0), r"quantize of \(6,\)"),
        (lambda: scale(source("codes", (2, 2), "int8"), axis=0), "scale of int8"),
        (lambda: concat([stored("table"), stored("vector")]), "concat of unlike parts"),
        (lambda: cut(stored("table"), 1, 2, 7), "slice 2:7 of 6"),
        (lambda: cut(stored("table"), 0, 3, 3), "slice 3:3 of 10"),
        (lambda: pack(stored("table")), "pack of float32"),
        (lambda: pack(cast(stored("vector"), "bfloat16")), r"pack of \(6,\)"),
        (lambda: cut(TILES, 0, 0, 1), r"slice of pack\(codes\): packing comes last"),
        (lambda: cast(TILES, "float32"), "cast of pack"),
        (lambda: concat([TILES, TILES]), "concat of pack"),
        (lambda: calibrated(TILES, "x"), "file of pack"),
        (lambda: pack(TILES), r"pack of \("),
    ],
)
def test_what_is_no_expression_is_our_bug(build: Callable[[], Weight], message: str):
    with pytest.raises(AssertionError, match=message):
        build()


# -- reading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"header!!" + TABLE.tobytes())
    return tmp_path / "weights.bin"


def test_stored_rows_start_at_their_offset(file: Path):
    tensor = StoredTensor(file, offset=8, shape=(10, 6), dtype="float32")
    assert tensor.nbytes == 240
    np.testing.assert_array_equal(tensor.rows(0, 10), TABLE)
    np.testing.assert_array_equal(tensor.rows(3, 5), TABLE[3:5])
    reference = CheckpointRef(file.parent, {}, {"table": tensor}, digest="")
    np.testing.assert_array_equal(value(stored("table"), reference.rows), TABLE)


def test_stored_bfloat16(file: Path):
    tensor = StoredTensor(file, offset=8, shape=(120,), dtype="bfloat16")
    assert tensor.rows(0, 120).tobytes() == TABLE.tobytes()
    assert tensor.rows(0, 1).dtype == BF16


def test_a_read_that_returns_less_is_continued(file: Path, monkeypatch: pytest.MonkeyPatch):
    whole = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return whole(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    tensor = StoredTensor(file, offset=8, shape=(10, 6), dtype="float32")
    np.testing.assert_array_equal(tensor.rows(2, 9), TABLE[2:9])


def test_a_truncated_file_is_named(file: Path):
    os.truncate(file, 8 + 100)
    tensor = StoredTensor(file, offset=8, shape=(10, 6), dtype="float32")
    np.testing.assert_array_equal(tensor.rows(0, 4), TABLE[:4])
    with pytest.raises(EOFError) as caught:
        tensor.rows(0, 10)
    assert str(caught.value) == f"{file} ends before byte 248"


def test_nothing_is_mapped(tmp_path: Path):
    # A mapped read would stay in the process's list of mappings while an array lives.
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(1 << 20))
    tensor = StoredTensor(path, offset=0, shape=(1 << 18,), dtype="float32")
    kept = tensor.rows(0, 1 << 18)
    assert kept.flags.writeable
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
