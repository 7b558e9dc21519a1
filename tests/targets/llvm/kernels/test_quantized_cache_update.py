import numpy as np
import pytest

from compiler.contracts.int8_scales import quantized_rows
from targets.llvm.kernels.quantized_cache_update import quantized_cache_update

_TOKENS, _CONTEXT, _HEADS = 5, 12, 3


def _rows(rng, head_dim):
    """Rows of very different sizes, ties both ways, and rows that have no normal scale."""
    rows = rng.standard_normal((_TOKENS, _HEADS, head_dim), dtype=np.float32)
    rows *= np.float32(10.0) ** rng.integers(-30, 30, (_TOKENS, _HEADS, 1)).astype(np.float32)
    ties = np.array([127, 0.5, 1.5, -0.5, -2.5, 126.5, -126.5], np.float32)
    rows[0, 0] = np.resize(ties, head_dim)
    rows[0, 1] = np.resize(-ties, head_dim)
    rows[1, 0] = 0
    rows[1, 1] = 1e-38  # normal, but not its 127th part
    rows[2, 1] = np.float32(2e-36)
    return rows


@pytest.mark.parametrize("head_dim", [7, 20, 64, 128])
def test_writes_codes_and_scales_of_valid_rows(features, execute, rng, head_dim):
    func = quantized_cache_update(
        _TOKENS, _HEADS, head_dim=head_dim, context=_CONTEXT, features=features
    )
    old_codes = rng.integers(-127, 128, (_CONTEXT, _HEADS, head_dim)).astype(np.int8)
    old_scales = rng.uniform(0, 1, (_CONTEXT, _HEADS, 1)).astype(np.float32)
    rows = _rows(rng, head_dim)
    new_codes, new_scales = quantized_rows(rows)
    for past, valid, count in [(2, 3, 3), (10, 5, 2), (12, 4, 0), (0, 0, 0), (3, 9, 5), (0, 5, 5)]:
        lengths = [np.array([past]), np.array([valid])]
        codes, scales, *_ = execute(func, [old_codes, old_scales, rows, *lengths])

        wanted_codes, wanted_scales = old_codes.copy(), old_scales.copy()
        wanted_codes[past : past + count] = new_codes[:count]
        wanted_scales[past : past + count] = new_scales[:count]
        np.testing.assert_array_equal(codes, wanted_codes)
        np.testing.assert_array_equal(scales, wanted_scales)


def test_ties_go_to_even_and_small_rows_have_scale_one(features, execute, rng):
    func = quantized_cache_update(_TOKENS, _HEADS, head_dim=7, context=_CONTEXT, features=features)
    empty = np.zeros((_CONTEXT, _HEADS, 7), np.int8), np.zeros((_CONTEXT, _HEADS, 1), np.float32)
    lengths = [np.array([0]), np.array([_TOKENS])]
    codes, scales, *_ = execute(func, [*empty, _rows(rng, 7), *lengths])

    assert codes[0, 0].tolist() == [127, 0, 2, 0, -2, 126, -126]
    assert codes[0, 1].tolist() == [-127, 0, -2, 0, 2, -126, 126]
    assert scales[0, 0, 0] == scales[1, 0, 0] == scales[1, 1, 0] == 1
    assert not codes[1, :2].any()
    assert codes[2, 1].tolist() == [127] * 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head_dim", [7, 64])
def test_what_is_no_number_shows_in_its_scale_alone(features, execute, rng, head_dim, value):
    func = quantized_cache_update(
        _TOKENS, _HEADS, head_dim=head_dim, context=_CONTEXT, features=features
    )
    empty = np.zeros((_CONTEXT, _HEADS, head_dim), np.int8), np.zeros((_CONTEXT, _HEADS, 1), "f4")
    rows = _rows(rng, head_dim)
    rows[1, 2, head_dim // 2] = value
    _, scales, *_ = execute(func, [*empty, rows, np.array([0]), np.array([_TOKENS])])
    wrong = ~np.isfinite(scales[:_TOKENS, :, 0])
    assert wrong.sum() == 1
    assert wrong[1, 2]
