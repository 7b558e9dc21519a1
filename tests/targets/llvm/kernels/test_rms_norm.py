import numpy as np
import pytest

from targets.llvm.kernels.rms_norm import rms_norm


@pytest.mark.parametrize(
    ("rows", "hidden"), [(1, 576), (1, 8), (3, 37), (5, 100), (128, 1024), (7, 1)]
)
def test_matches_float64(features, execute, rng, rows, hidden):
    x = rng.standard_normal((rows, hidden), dtype=np.float32) * 10
    weight = rng.standard_normal(hidden, dtype=np.float32)
    func = rms_norm(rows, hidden, epsilon=1e-6, features=features)

    *_, got = execute(func, [x, weight, np.full_like(x, np.nan)])

    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * weight
    # A sum of positive numbers in lanes of at most hidden / 4 + 6 additions, halved by the root;
    # then a root, a quotient and two products.
    np.testing.assert_allclose(got, expected, rtol=(hidden / 8 + 8) * 2.0**-24, atol=0)


def test_epsilon_counts(features, execute):
    x = np.full((1, 16), 1e-3, np.float32)
    func = rms_norm(1, 16, epsilon=1e-2, features=features)
    *_, got = execute(func, [x, np.ones(16, np.float32), np.zeros_like(x)])
    np.testing.assert_allclose(got, 1e-3 / np.sqrt(1e-6 + 1e-2), rtol=1e-6)


@pytest.mark.parametrize(("rows", "hidden"), [(1, 576), (3, 37), (128, 1024)])
def test_a_sum_and_its_norm(features, execute, rng, rows, hidden):
    x, addend = (rng.standard_normal((rows, hidden), dtype=np.float32) for _ in range(2))
    weight = rng.standard_normal(hidden, dtype=np.float32)
    func = rms_norm(rows, hidden, epsilon=1e-6, features=features, has_addend=True)
    plain = rms_norm(rows, hidden, epsilon=1e-6, features=features)

    *_, total, got = execute(func, [x, addend, weight, np.zeros_like(x), np.zeros_like(x)])

    assert np.array_equal(total, x + addend)
    assert np.array_equal(got, execute(plain, [total, weight, np.zeros_like(x)])[-1])


@pytest.mark.parametrize("valid", [0, 3, 200])
def test_rows_past_the_limit_are_left(features, execute, rng, valid):
    x = rng.standard_normal((5, 16), dtype=np.float32)
    func = rms_norm(5, 16, epsilon=1e-6, features=features, has_limit=True)
    limit = np.array([valid], np.int64)
    *_, got = execute(func, [x, np.ones(16, np.float32), limit, np.full_like(x, np.nan)])
    assert np.isfinite(got[:valid]).all()
    assert np.isnan(got[valid:]).all()
