import numpy as np
import pytest

from targets.llvm.kernels.rotary import rotary


def expected(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"), [(1, 16, 64), (3, 2, 6), (5, 1, 2), (40, 14, 128), (7, 3, 20)]
)
def test_matches_float64(features, execute, rng, tokens, heads, head_dim):
    x = rng.standard_normal((tokens, heads, head_dim), dtype=np.float32)
    cos, sin = (rng.uniform(-1, 1, (tokens, head_dim)).astype(np.float32) for _ in range(2))
    func = rotary(tokens, heads, head_dim=head_dim, features=features)
    *_, got = execute(func, [x, cos, sin, np.full_like(x, np.nan)])
    wide = expected(*(one.astype(np.float64) for one in (x, cos, sin)))
    # Two products and a sum, each rounded once.
    sizes = expected(np.abs(x), np.abs(cos), np.abs(sin)) + 2 * np.abs(x).max()
    assert np.all(np.abs(got - wide) <= 3 * 2.0**-24 * np.abs(sizes))


def test_rows_past_the_limit_are_left(features, execute, rng):
    x = rng.standard_normal((9, 2, 8), dtype=np.float32)
    angles = rng.uniform(-1, 1, (9, 8)).astype(np.float32)
    func = rotary(9, 2, head_dim=8, features=features, has_limit=True)
    y = np.full_like(x, np.nan)
    *_, got = execute(func, [x, angles, angles, np.array([4], np.int64), y])
    assert np.isfinite(got[:4]).all()
    assert np.isnan(got[4:]).all()
