"""The work in a model, counted by hand, and the folders that are made once."""

from pathlib import Path

import pytest

from benchmarks.lengths import lengths_up_to
from benchmarks.models import Shape, checkpoint_of, shape_of
from benchmarks.peers_table import floor_of
from benchmarks.roof import Roof


def test_a_checkpoint_is_made_once(tmp_path: Path) -> None:
    place = checkpoint_of("tiny", tmp_path)
    before = (place / "model.safetensors").stat().st_mtime_ns
    assert checkpoint_of("tiny", tmp_path) == place
    assert (place / "model.safetensors").stat().st_mtime_ns == before
    assert {"config.json", "tokenizer.json", "complete"} <= {one.name for one in place.iterdir()}
    # 2 layers, hidden 128, 4 heads and 2 key heads of 32, intermediate 256, vocabulary 512.
    layer = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 3 * 128 * 256
    assert shape_of(place) == Shape(2, 128, 64, 512, 2 * layer, 128 * 512)


def test_operations_and_bytes() -> None:
    shape = Shape(layers=3, query=10, key=5, vocabulary=7, layer_weights=100, head_weights=40)
    assert shape.decode_operations(9) == 2 * 140 + 4 * 10 * 3 * 10
    assert shape.prefill_operations(1) == shape.decode_operations(0)
    assert shape.read_bytes("fp32", 2) == 140 * 4 + 2 * 5 * 3 * 2 * 4
    assert shape.read_bytes("int4", 2) == 140 / 2 + 2 * 5 * 3 * 2 * 2


def test_a_floor_is_the_slower_of_reading_and_computing() -> None:
    shape = Shape(layers=1, query=1, key=1, vocabulary=2, layer_weights=100, head_weights=0)
    slow_memory = floor_of(shape, Roof(400.0, {"fp32": 1e9}), "fp32", (8,))
    assert slow_memory.prefill_ms[8] == pytest.approx(1000 * (400 + 2 * 8 * 4) / 400)
    slow_arithmetic = floor_of(shape, Roof(1e9, {"fp32": 10.0}), "fp32", (8,))
    assert slow_arithmetic.tokens_per_second[8] == pytest.approx(10 / (200 + 4 * 9))


@pytest.mark.parametrize(
    ("context", "lengths"),
    [(1, []), (2, [1]), (17, [16]), (48, [16, 32, 47]), (8192, [16 * 2**n for n in range(9)])],
)
def test_lengths_leave_room_for_a_token(context: int, lengths: list[int]) -> None:
    assert list(lengths_up_to(context)) == lengths
