"""From a graph's tensor to rows of tokens and back, in every layout."""

import ml_dtypes
import numpy as np
import pytest

from compiler.numerics.tap_place import TapPlace

TOKENS, HEADS, WIDTH = 5, 6, 4
# rows[token, head * WIDTH + feature]
ROWS = np.arange(TOKENS * HEADS * WIDTH, dtype=np.float32).reshape(TOKENS, HEADS * WIDTH)
BY_TOKEN = ROWS.reshape(TOKENS, HEADS, WIDTH)
BY_HEAD = BY_TOKEN.transpose(1, 0, 2)
LAYOUTS = {
    "[1, T, W]": (TapPlace("x"), ROWS[None]),
    "[1, H, T, d]": (TapPlace("x"), BY_HEAD[None]),
    "[1, K, G, T, d]": (TapPlace("x"), BY_HEAD.reshape(1, 2, 3, TOKENS, WIDTH)),
    "[T, K, d]": (TapPlace("x", 0), BY_TOKEN),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_the_real_tokens_rows_and_no_others(layout: str):
    place, array = LAYOUTS[layout]
    before = array.copy()

    rows = place.rows(array, past=3, valid=4)
    np.testing.assert_array_equal(rows, ROWS[:4])
    changed = place.with_rows(array, -rows, past=3, valid=4)
    wanted = np.concatenate([-ROWS[:4], ROWS[4:]])

    np.testing.assert_array_equal(place.rows(changed, past=0, valid=TOKENS), wanted)
    assert changed.shape == array.shape
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("place", "array"),
    [(TapPlace("x", -2, "cache"), BY_HEAD[None]), (TapPlace("x", 0, "cache"), BY_TOKEN)],
    ids=["[1, K, S, d]", "[C, K, d]"],
)
def test_rows_of_a_cache_lie_behind_the_past(place: TapPlace, array: np.ndarray):
    rows = place.rows(array, past=2, valid=2)
    np.testing.assert_array_equal(rows, ROWS[2:4])

    changed = place.with_rows(array, rows + 1, past=2, valid=2)
    np.testing.assert_array_equal(place.rows(changed, past=0, valid=2), ROWS[:2])
    np.testing.assert_array_equal(place.rows(changed, past=2, valid=2), ROWS[2:4] + 1)
    np.testing.assert_array_equal(place.rows(changed, past=4, valid=1), ROWS[4:])


def test_logits_are_the_last_real_token_s_whether_all_are_given_or_one():
    place = TapPlace("logits", span="last")
    np.testing.assert_array_equal(place.rows(ROWS[None], past=0, valid=3), ROWS[2:3])
    np.testing.assert_array_equal(place.rows(ROWS[None, :1], past=0, valid=3), ROWS[:1])


def test_values_keep_the_tensor_s_type_and_rows_are_the_observer_s_own():
    place = TapPlace("x")
    array = ROWS[None].astype(ml_dtypes.bfloat16)
    rows = place.rows(array, past=0, valid=2)
    assert rows.dtype == np.float32
    rows[:] = np.nan
    assert not np.isnan(array.astype(np.float32)).any()

    changed = place.with_rows(array, np.full_like(rows, 1.001), past=0, valid=2)
    assert changed.dtype == array.dtype
    assert place.rows(changed, past=0, valid=2)[0, 0] == 1.0
