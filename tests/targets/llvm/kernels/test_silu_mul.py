import numpy as np
import pytest

from targets.llvm.kernels.silu_mul import silu_mul


@pytest.mark.parametrize(
    ("rows", "width"), [(1, 1536), (1, 17), (1, 32768), (3, 37), (128, 512), (2, 1)]
)
def test_matches_float64(features, execute, rng, rows, width):
    gate = rng.standard_normal((rows, width), dtype=np.float32) * 20
    up = rng.standard_normal((rows, width), dtype=np.float32)

    *_, got = execute(
        silu_mul(rows, width, features=features), [gate, up, np.full_like(gate, np.nan)]
    )

    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide)) * up
    # exp (2 units), a sum, a quotient and two products; exp flushes what is under 2^-126 to zero.
    np.testing.assert_allclose(got, expected, rtol=8 * 2.0**-24, atol=2.0**-126 * 2000)


def test_saturates_without_overflow(features, execute):
    gate = np.array([[-3e38, -1000, -88, 0, 88, 1000, 3e38, -0.0]], dtype=np.float32)
    ones = np.ones_like(gate)
    *_, got = execute(silu_mul(1, 8, features=features), [gate, ones, np.full_like(gate, np.nan)])
    np.testing.assert_allclose(got, [[0, 0, 0, 0, 88, 1000, 3e38, 0]], rtol=1e-6, atol=1e-30)
