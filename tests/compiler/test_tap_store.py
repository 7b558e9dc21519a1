"""Taps on disk: what is kept, joined, listed and not there."""

from pathlib import Path

import numpy as np
import pytest

from compiler.contracts.taps import Tap
from compiler.tap_store import TapFolder

QUERY, LOGITS = Tap(3, "q"), Tap(None, "logits")


def rows(count: int, *, start: int = 0) -> np.ndarray:
    return np.arange(start * 2, (start + count) * 2, dtype=np.float32).reshape(count, 2)


def test_rows_come_back_by_call_and_tap(tmp_path: Path) -> None:
    store = TapFolder(tmp_path / "taps")
    store.put("prompt0/prefill0", QUERY, rows(3))
    store.put("prompt0/step1", QUERY, rows(1, start=3))
    store.put("prompt0/prefill0", LOGITS, rows(1, start=9))
    for call, tap, expected in (
        ("prompt0/prefill0", QUERY, rows(3)),
        ("prompt0/step1", QUERY, rows(1, start=3)),
        ("prompt0/prefill0", LOGITS, rows(1, start=9)),
    ):
        found = store.get(call, tap)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_what_was_not_kept_is_none(tmp_path: Path) -> None:
    store = TapFolder(tmp_path / "taps")
    assert store.get("prompt0/prefill0", QUERY) is None
    store.put("prompt0/prefill0", QUERY, rows(1))
    assert store.get("prompt1/prefill0", QUERY) is None
    assert store.get("prompt0/prefill0", Tap(2, "q")) is None
    assert store.get("prompt0/prefill0", Tap(3, "k")) is None


def test_parts_of_a_call_are_joined(tmp_path: Path) -> None:
    store = TapFolder(tmp_path)
    for start, count in ((0, 3), (3, 1), (4, 2)):
        store.put("prompt0/prefill0", QUERY, rows(count, start=start))
    found = store.get("prompt0/prefill0", QUERY)
    assert found is not None
    np.testing.assert_array_equal(found, rows(6))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.0])
def test_bits_are_kept(tmp_path: Path, value: float) -> None:
    store = TapFolder(tmp_path)
    given = np.full((1, 2), value, np.float32)
    store.put("prompt0/prefill0", QUERY, given)
    found = store.get("prompt0/prefill0", QUERY)
    assert found is not None
    assert found.tobytes() == given.tobytes()


def test_members_are_sorted_and_name_their_files(tmp_path: Path) -> None:
    store = TapFolder(tmp_path)
    assert list(store.members()) == []
    for call, tap in (("prompt1/step1", LOGITS), ("prompt0/prefill0", QUERY)):
        store.put(call, tap, rows(1))
    found = list(store.members())
    assert [name for name, _ in found] == [
        "prompt0/prefill0/model.layers.3/q",
        "prompt1/step1/logits",
    ]
    assert [np.load(file).tolist() for _, file in found] == [rows(1).tolist()] * 2
