import numpy as np
import pytest

from targets.llvm.kernels.quantize_tokens import quantize_tokens


def quantized(execute, features, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, width = x.shape
    func = quantize_tokens(rows, width, features=features)
    codes, scales = np.full(x.shape, 99, np.int8), np.full(rows, np.nan, np.float32)
    _, codes, scales = execute(func, [x, codes, scales])
    return codes, scales


# The last is large enough for threads.
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 64), (3, 37), (5, 130), (128, 144)])
def test_is_numpys_to_the_bit(features, execute, rng, rows, width):
    x = rng.standard_normal((rows, width), dtype=np.float32) * 10.0 ** rng.integers(
        -3, 4, (rows, 1)
    )
    x = x.astype(np.float32)
    codes, scales = quantized(execute, features, x)
    expected = np.abs(x).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(scales, expected)
    np.testing.assert_array_equal(codes, np.rint(x / expected[:, None]).astype(np.int8))
    assert np.abs(codes).max() == 127


def test_ties_go_to_the_even_code(features, execute):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 125.5, 0.49999997]], np.float32)
    codes, scales = quantized(execute, features, x)
    assert scales.tolist() == [1.0]
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -126, 126, 0]]


def test_rows_without_a_scale_are_zeros(features, execute):
    tiny = np.finfo(np.float32).tiny
    x = np.zeros((3, 20), np.float32)
    x[1, 3], x[2, 5] = 100 * tiny, 128 * tiny
    codes, scales = quantized(execute, features, x)
    assert scales.tolist() == [1.0, 1.0, np.float32(128 * tiny) / np.float32(127)]
    assert not codes[:2].any()
    assert codes[2, 5] == 127


@pytest.mark.parametrize("place", [0, 18])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_finite_scale_hides_what_is_no_number(features, execute, rng, place, value):
    x = rng.standard_normal((2, 19), dtype=np.float32)
    x[0, place] = value
    _, scales = quantized(execute, features, x)
    assert not np.isfinite(scales[0])
    assert np.isnan(scales[0]) == np.isnan(value)
    assert np.isfinite(scales[1])
