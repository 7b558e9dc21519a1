import ml_dtypes
import numpy as np
import pytest

from targets.llvm.features import CpuFeatures, from_names
from targets.llvm.kernels.attention import attention

# (tokens, heads, kv_heads, head_dim, context, past_length, valid_length)
_DECODE = [
    (1, 2, 1, 8, 16, 0, 1),
    (1, 9, 3, 64, 200, 130, 1),
    (1, 4, 4, 20, 100, 70, 1),
    (1, 8, 1, 128, 600, 599, 1),
    (1, 16, 16, 80, 70, 64, 1),
    (1, 14, 2, 96, 300, 290, 1),
    (1, 40, 1, 16, 40, 20, 1),
    (1, 3, 3, 7, 32, 5, 0),
]
_PREFILL = [
    (2, 2, 1, 8, 16, 0, 2),
    (5, 3, 3, 7, 32, 3, 2),
    (16, 9, 3, 64, 200, 130, 10),
    (17, 8, 1, 96, 80, 60, 13),
    (33, 4, 2, 20, 100, 0, 33),
    (50, 2, 2, 80, 130, 70, 50),
    (64, 4, 4, 128, 256, 100, 64),
    (16, 4, 4, 16, 16, 0, 16),
]
# The same, and a window: of one key, within a block, over several, odd, ending before the row.
_WINDOWED = [
    (*(1, 2, 1, 8, 16, 9, 1), 1),
    (*(1, 9, 3, 64, 200, 130, 1), 33),
    (*(1, 14, 2, 96, 300, 290, 1), 129),
    (*(1, 3, 3, 7, 32, 2, 1), 5),
    (*(5, 3, 3, 7, 32, 3, 2), 2),
    (*(16, 9, 3, 64, 200, 130, 10), 7),
    (*(17, 8, 1, 96, 80, 60, 13), 61),
    (*(33, 4, 2, 20, 100, 0, 33), 1),
    (*(50, 2, 2, 80, 300, 220, 50), 129),
    (*(64, 4, 4, 128, 256, 100, 64), 100),
]
_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# Scores here stay under 20 in size: their rounding (2^-24 * 20 * a few sums) is what exp passes on.
_TOLERANCE = 1e-5


def _reference(q, k_cache, v_cache, *, past, valid, scale, window=0):
    tokens, heads, _ = q.shape
    group = heads // k_cache.shape[1]
    out = np.zeros(q.shape)
    for i in range(tokens):
        last = min(past + i + 1, past + valid)
        first = max(past + i + 1 - window, 0) if window else 0
        if first >= last:
            continue
        for h in range(heads):
            keys = k_cache[first:last, h // group].astype(np.float64)
            scores = keys @ q[i, h].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            values = v_cache[first:last, h // group].astype(np.float64)
            out[i, h] = weights @ values / weights.sum()
    return out


def _without_tiles(features):
    """test_tile_attention.py has the form that multiplies bfloat16."""
    kept = tuple(flag for flag in features.flags if not flag.startswith("amx"))
    return CpuFeatures(features.arch, kept)


def _run(execute, features, q, *caches, past, valid, scale, dtype, window=0):
    """`caches` as the kernel takes them: keys, values, and of int8 the scales of both."""
    tokens, heads, head_dim = q.shape
    func = attention(
        tokens,
        heads,
        kv_heads=caches[0].shape[1],
        head_dim=head_dim,
        context=caches[0].shape[0],
        window=window,
        scale=scale,
        cache_dtype=dtype,
        features=_without_tiles(features),
    )
    lengths = [np.array([past]), np.array([valid])]
    out = np.full(q.shape, np.nan, np.float32)
    return execute(func, [q, *caches, *lengths, out])[-1]


def _assert_rows_agree(got, expected, *, valid):
    """One token's output is always defined, of many that of the valid rows."""
    rows = 1 if len(got) == 1 else valid
    assert rows > 0
    assert np.max(np.abs(got - expected)[:rows]) <= _TOLERANCE


# Each shape with one dtype in turn, and the two forms with all of them.
_CASES = {
    *((*shape, list(_DTYPES)[i % 3]) for i, shape in enumerate(_DECODE + _PREFILL)),
    *((*shape, dtype) for shape in (_DECODE[2], _PREFILL[4]) for dtype in _DTYPES),
}


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "context", "past", "valid", "dtype"),
    sorted(_CASES),
)
def test_matches_float64(
    features, execute, rng, tokens, heads, kv_heads, head_dim, context, past, valid, dtype
):
    q = rng.standard_normal((tokens, heads, head_dim), dtype=np.float32) * 3
    caches = rng.standard_normal((2, context, kv_heads, head_dim)).astype(_DTYPES[dtype])
    caches[:, past + valid :] = np.nan  # what was never written may hold anything
    scale = head_dim**-0.5

    got = _run(execute, features, q, *caches, past=past, valid=valid, scale=scale, dtype=dtype)

    expected = _reference(q, *caches, past=past, valid=valid, scale=scale)
    _assert_rows_agree(got, expected, valid=valid)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "context", "past", "valid", "window"), _WINDOWED
)
def test_a_window_matches_float64(
    features, execute, rng, tokens, heads, kv_heads, head_dim, context, past, valid, window
):
    q = rng.standard_normal((tokens, heads, head_dim), dtype=np.float32) * 3
    caches = rng.standard_normal((2, context, kv_heads, head_dim), dtype=np.float32)
    first = max(past + 1 - window, 0)
    caches[:, :first] = np.nan  # no row reaches back to these
    caches[:, past + valid :] = np.nan
    lengths = {"past": past, "valid": valid, "scale": head_dim**-0.5, "window": window}

    got = _run(execute, features, q, *caches, dtype="float32", **lengths)

    expected = _reference(q, *caches, **lengths)
    _assert_rows_agree(got, expected, valid=valid)


# (tokens, heads, kv_heads, head_dim, context, past_length, valid_length, window): groups of 1, 3
# and 7, a first and a last row, padding, and windows within a block and over several.
_INT8 = [
    *(
        (1, 2 * group, 2, head_dim, 200, 199, 1, 0)
        for head_dim in (20, 64, 128)
        for group in (1, 3, 7)
    ),
    *(
        (19, 2 * group, 2, head_dim, 200, 130, 11, 0)
        for head_dim in (20, 64, 128)
        for group in (1, 3, 7)
    ),
    (1, 6, 2, 64, 200, 0, 1, 0),
    (1, 6, 2, 20, 200, 150, 1, 33),
    (1, 6, 2, 20, 200, 150, 1, 129),
    (1, 3, 3, 7, 32, 5, 0, 0),
    (19, 6, 2, 20, 200, 181, 19, 70),
    (19, 14, 2, 64, 200, 100, 5, 7),
]


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "context", "past", "valid", "window"), _INT8
)
def test_int8_caches_match_float64(
    features, execute, rng, tokens, heads, kv_heads, head_dim, context, past, valid, window
):
    q = rng.standard_normal((tokens, heads, head_dim), dtype=np.float32) * 3
    codes = rng.integers(-127, 128, (2, context, kv_heads, head_dim)).astype(np.int8)
    # Scales of neighbouring keys and heads differ by far more than the tolerance.
    scales = rng.uniform(0.2, 2.0, (2, context, kv_heads, 1)).astype(np.float32) / 127
    wide = codes.astype(np.float64) * scales
    scales[:, past + valid :] = np.nan  # what was never written may hold anything
    lengths = {"past": past, "valid": valid, "scale": head_dim**-0.5, "window": window}

    got = _run(execute, features, q, *codes, *scales, dtype="int8", **lengths)

    expected = _reference(q, *wide, **lengths)
    _assert_rows_agree(got, expected, valid=valid)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("window", [40, 41, 1 << 20])
def test_a_window_that_is_not_reached_changes_nothing(features, execute, rng, tokens, window):
    q = rng.standard_normal((tokens, 4, 16), dtype=np.float32)
    caches = rng.standard_normal((2, 48, 2, 16), dtype=np.float32)
    lengths = {"past": 40 - tokens, "valid": tokens, "scale": 0.25, "dtype": "float32"}
    without = _run(execute, features, q, *caches, **lengths)
    windowed = _run(execute, features, q, *caches, window=window, **lengths)
    np.testing.assert_array_equal(windowed, without)


def test_nothing_allowed_gives_zero(features, execute, rng):
    q = rng.standard_normal((1, 4, 16), dtype=np.float32)
    cache = np.full((32, 2, 16), np.nan, np.float32)
    got = _run(execute, features, q, cache, cache, past=0, valid=0, scale=0.25, dtype="float32")
    np.testing.assert_array_equal(got, np.zeros_like(q))


def test_blocks_of_rows_past_the_valid_ones_are_skipped(features, execute, rng):
    q = rng.standard_normal((200, 4, 16), dtype=np.float32)
    caches = rng.standard_normal((2, 200, 2, 16), dtype=np.float32)
    lengths = {"past": 0, "valid": 3, "scale": 0.25}
    got = _run(execute, features, q, *caches, dtype="float32", **lengths)
    _assert_rows_agree(got, _reference(q, *caches, **lengths), valid=3)
    assert np.all(np.isnan(got[100:]))


@pytest.mark.parametrize("tokens", [1, 20])
def test_huge_scores_do_not_overflow(features, execute, rng, tokens):
    """Scores of +-1e6: exp without the maximum subtracted would be infinite."""
    q = rng.standard_normal((tokens, 2, 16), dtype=np.float32) * 1e3
    caches = rng.standard_normal((2, 40, 2, 16)).astype(np.float32)
    caches[0] *= 1e3
    got = _run(execute, features, q, *caches, past=3, valid=tokens, scale=1.0, dtype="float32")
    assert np.all(np.isfinite(got))
    assert np.max(np.abs(got)) <= np.max(np.abs(caches[1])) * (1 + 1e-6)


def test_one_token_and_many_agree(features, execute, rng):
    """The last row of a window is what decode computes at that position."""
    tokens = 20
    q = rng.standard_normal((tokens, 6, 32), dtype=np.float32)
    caches = rng.standard_normal((2, 64, 2, 32)).astype(np.float32)
    many = _run(execute, features, q, *caches, past=30, valid=tokens, scale=0.2, dtype="float32")
    one = _run(
        execute,
        features,
        q[-1:],
        *caches,
        past=30 + tokens - 1,
        valid=1,
        scale=0.2,
        dtype="float32",
    )
    assert np.max(np.abs(many[-1:] - one)) <= 1e-6


def test_heads_must_divide():
    with pytest.raises(AssertionError, match="5 heads do not divide over 2 kv heads"):
        attention(
            1,
            5,
            kv_heads=2,
            head_dim=8,
            context=16,
            scale=1.0,
            cache_dtype="float32",
            features=from_names([]),
        )
