import ml_dtypes
import numpy as np
import pytest
import tvm

from targets.llvm.features import detect, from_names, has_tiles, permit_tiles
from targets.llvm.kernels.attention import attention
from targets.llvm.kernels.attention_shape import AttentionShape
from targets.llvm.kernels.tile_attention import has_tile_prefill

# (tokens, heads, kv_heads, head_dim, context, past_length, valid_length, window)
_CASES = [
    (2, 1, 1, 32, 7, 0, 2, 0),
    (2, 7, 1, 64, 50, 41, 1, 0),
    (5, 14, 2, 32, 50, 7, 3, 0),
    (17, 8, 1, 96, 80, 60, 13, 0),
    (31, 2, 1, 128, 65, 33, 31, 0),
    (32, 2, 2, 64, 32, 0, 32, 0),
    (33, 4, 2, 64, 100, 0, 33, 0),
    (64, 4, 4, 128, 403, 300, 64, 0),
    (100, 9, 9, 32, 101, 0, 100, 0),
    (128, 2, 2, 96, 385, 257, 128, 0),
    (130, 14, 2, 64, 301, 0, 130, 0),
    (130, 3, 3, 64, 301, 170, 97, 0),
    # A window: of one key, within a step, over several, odd, past the first row, unreached.
    (33, 4, 2, 32, 100, 0, 33, 1),
    (40, 7, 1, 64, 200, 130, 40, 7),
    (64, 4, 4, 128, 256, 100, 50, 33),
    (130, 2, 1, 96, 333, 100, 130, 50),
    (130, 4, 2, 64, 640, 500, 130, 300),
    (65, 2, 2, 64, 131, 66, 65, 1 << 20),
]
_BF16_UNIT, _FP32_UNIT = 2.0**-8, 2.0**-24
_POLYNOMIAL_ERROR = 3e-6


@pytest.fixture
def features():
    present = detect()
    if not has_tiles(present):
        pytest.skip("this machine lacks AMX: amx_tile, amx_bf16 and amx_int8 in /proc/cpuinfo")
    permit_tiles(present)
    return present


def _bf16(values):
    return values.astype(ml_dtypes.bfloat16)


def _operands(rng, tokens, heads, kv_heads, head_dim, context, *, size=3.0):
    q = _bf16(rng.standard_normal((tokens, heads, head_dim)) * size).astype(np.float32)
    return q, _bf16(rng.standard_normal((2, context, kv_heads, head_dim)))


def _run(execute, features, q, caches, *, past, valid, scale, window=0):
    tokens, heads, head_dim = q.shape
    _, context, kv_heads, _ = caches.shape
    shape = AttentionShape(tokens, heads, kv_heads, head_dim, context, window, scale)
    assert has_tile_prefill(shape, cache_dtype="bfloat16", features=features)
    func = attention(
        tokens,
        heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        window=window,
        scale=scale,
        cache_dtype="bfloat16",
        features=features,
    )
    out = np.full(q.shape, np.nan, np.float32)
    return execute(func, [q, *caches, np.array([past]), np.array([valid]), out])[-1]


def _reference(q, caches, *, past, valid, scale, window=0):
    """The valid rows in float64, and how far each element may be off.

    A weight is off by a relative `error`: its rounding to bfloat16, the polynomial's, and that of
    its exponent, whose terms are the score's sum, its scaling and the reference's subtraction (the
    reference is a score and 20 more). As the weights are divided by their own sum, an element is
    off by at most error / (1 - error) times the mean distance of the values from it. Their sums
    round each addition, and scalings by a higher reference, one a key at most.
    """
    _, heads, head_dim = q.shape
    group = heads // caches.shape[2]
    expected, bound = np.zeros((2, valid, heads, head_dim))
    wide = caches.astype(np.float64)
    for i in range(valid):
        keys = slice(max(past + i + 1 - window, 0) if window else 0, past + i + 1)
        for h in range(heads):
            k, v = wide[:, keys, h // group]
            scores = k @ q[i, h] * scale
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out = weights @ v
            size = (np.abs(k) @ np.abs(q[i, h])).max() * abs(scale)
            exponent = _FP32_UNIT * ((head_dim + 2) * size + 4 * (size + 20))
            error = _BF16_UNIT + _POLYNOMIAL_ERROR + np.expm1(exponent)
            spread = weights @ np.abs(v - out)
            expected[i, h] = out
            bound[i, h] = error / (1 - error) * spread
            bound[i, h] += 2 * (len(k) + 8) * _FP32_UNIT * (weights @ np.abs(v))
    return expected, bound


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "context", "past", "valid", "window"), _CASES
)
def test_matches_float64(
    features, execute, rng, tokens, heads, kv_heads, head_dim, context, past, valid, window
):
    q, caches = _operands(rng, tokens, heads, kv_heads, head_dim, context)
    caches[:, past + valid :] = np.nan  # what was never written may hold anything
    caches[:, : max(past + 1 - window, 0) if window else 0] = np.nan  # no row reaches back to these
    q[valid:] = np.nan
    lengths = {"past": past, "valid": valid, "scale": head_dim**-0.5, "window": window}

    got = _run(execute, features, q, caches, **lengths)[:valid]

    expected, bound = _reference(q, caches, **lengths)
    assert np.all(np.abs(got - expected) <= bound)


@pytest.mark.parametrize("step", [0.5, 4.0])
def test_references_rise_with_the_scores(features, execute, rng, step):
    """Scores that grow by up to 500 in each 32 keys leave every reference behind."""
    q, caches = _operands(rng, 70, 4, 2, 64, 600, size=0.1)
    q[:, :, 0] = 16.0
    caches[0, :, :, 0] = np.arange(600)[:, None] * step
    lengths = {"past": 520, "valid": 70, "scale": 0.25}
    got = _run(execute, features, q, caches, **lengths)
    expected, bound = _reference(q, caches, **lengths)
    assert np.all(np.abs(got - expected) <= bound)


def test_a_negative_scale(features, execute, rng):
    q, caches = _operands(rng, 40, 2, 2, 32, 90)
    lengths = {"past": 50, "valid": 40, "scale": -0.3}
    got = _run(execute, features, q, caches, **lengths)
    expected, bound = _reference(q, caches, **lengths)
    assert np.all(np.abs(got - expected) <= bound)


def test_equal_values_come_out_whole(features, execute, rng):
    """The weights are divided by the sum of themselves, rounded as they are."""
    q, caches = _operands(rng, 60, 4, 2, 64, 200)
    caches[1] = _bf16(np.array([1.71875]))
    got = _run(execute, features, q, caches, past=140, valid=60, scale=0.125)
    assert np.max(np.abs(got / 1.71875 - 1)) <= 2 * 200 * _FP32_UNIT


def test_no_valid_row_is_left_alone(features, execute, rng):
    q, caches = _operands(rng, 20, 2, 1, 64, 40)
    got = _run(execute, features, q, caches, past=0, valid=0, scale=0.125)
    assert np.all(np.isnan(got))


def test_blocks_of_rows_past_the_valid_ones_are_skipped(features, execute, rng):
    q, caches = _operands(rng, 200, 2, 1, 64, 200)
    got = _run(execute, features, q, caches, past=0, valid=3, scale=0.125)
    assert np.all(np.isfinite(got[:3]))
    assert np.all(np.isnan(got[3:]))


def test_the_same_bytes_again_and_with_one_thread(features, execute, rng):
    q, caches = _operands(rng, 130, 14, 2, 64, 301)
    lengths = {"past": 100, "valid": 130, "scale": 0.125}
    threads = tvm.get_global_func("runtime.config_threadpool")
    first, second = (_run(execute, features, q, caches, **lengths) for _ in range(2))
    threads(1, 1)
    try:
        alone = _run(execute, features, q, caches, **lengths)
    finally:
        threads(1, 2)
    assert first.tobytes() == second.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("head_dim", "dtype", "names"),
    [
        (64, "float32", ()),
        (64, "float16", ()),
        (64, "int8", ()),
        (48, "bfloat16", ()),
        (160, "bfloat16", ()),
        (64, "bfloat16", ("avx2", "fma")),
    ],
)
def test_declines(head_dim, dtype, names):
    flags = ["amx_bf16", "amx_int8", "amx_tile", "avx512_vnni", "avx512bw", "avx512dq", "avx512f"]
    shape = AttentionShape(8, 2, 1, head_dim, 16, 0, 0.125)
    able = from_names(names or flags)
    assert not has_tile_prefill(shape, cache_dtype=dtype, features=able)
    whole = AttentionShape(8, 2, 1, 64, 16, 0, 0.125)
    assert has_tile_prefill(whole, cache_dtype="bfloat16", features=from_names(flags))
