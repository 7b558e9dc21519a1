import ml_dtypes
import numpy as np
import pytest
import tvm

from targets.llvm.features import from_names
from targets.llvm.kernels.linear import linear

# (rows, outputs, inputs): decode, few rows, whole tiles, and every kind of remainder; inputs over
# one panel (1024 with 32 registers, 2048 with 16) and not a multiple of it, rows over one chunk.
_SHAPES = [
    (1, 1, 8),
    (1, 64, 64),
    (1, 37, 100),
    (2, 19, 33),
    (4, 5, 7),
    (5, 3, 9),
    (16, 40, 64),
    (17, 40, 20),
    (32, 7, 40),
    (48, 24, 2112),
    (100, 33, 2050),
    (128, 16, 72),
    (300, 9, 2112),
]
_DTYPES = ("float32", "bfloat16", "float16")
_UNIT = 2.0**-24


# Each shape with one dtype in turn, and the two forms with all of them.
_CASES = {
    *((*shape, _DTYPES[i % 3]) for i, shape in enumerate(_SHAPES)),
    *((*shape, dtype) for shape in [(1, 37, 100), (17, 40, 20)] for dtype in _DTYPES),
}


@pytest.mark.parametrize(("rows", "outputs", "inputs", "dtype"), sorted(_CASES))
def test_matches_float64(features, execute, rng, rows, outputs, inputs, dtype):
    has_bias = outputs % 2 == 1
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    stored = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    weight = rng.standard_normal((outputs, inputs)).astype(stored)
    bias = rng.standard_normal(outputs, dtype=np.float32)
    y = np.full((rows, outputs), np.nan, np.float32)
    func = linear(
        rows, outputs, inputs=inputs, weight_dtype=dtype, has_bias=has_bias, features=features
    )

    *_, got = execute(func, [x, weight, *([bias] if has_bias else []), y])

    wide_x, wide_weight = x.astype(np.float64), weight.astype(np.float64)
    expected = wide_x @ wide_weight.T + (bias if has_bias else 0)
    # Higham, Accuracy and Stability of Numerical Algorithms, 3.1: |error| <= gamma_n |x| |w|, one
    # rounding a product and a sum; plus the bias's.
    bound = (inputs + 2) * _UNIT * (np.abs(wide_x) @ np.abs(wide_weight).T + np.abs(bias))
    assert np.all(np.abs(got - expected) <= bound)
    # The worst case above is far: rounding errors behave like a random walk.
    assert np.max(np.abs(got - expected)) <= 8 * _UNIT * inputs


def test_writes_nothing_past_its_rows(features, execute, rng):
    """A row of y is all the memory there is: guards, not luck, keep the last block inside."""
    x = rng.standard_normal((33, 24), dtype=np.float32)
    weight = rng.standard_normal((9, 24), dtype=np.float32)
    func = linear(33, 9, inputs=24, weight_dtype="float32", has_bias=False, features=features)
    once = execute(func, [x, weight, np.zeros((33, 9), np.float32)])
    again = execute(func, [x, weight, np.full((33, 9), np.inf, np.float32)])
    for first, second in zip(once, again, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(once[0], x)
    np.testing.assert_array_equal(once[1], weight)


def test_lm_head_has_no_code_per_output():
    features = from_names(["avx512f"])
    options = {"inputs": 64, "weight_dtype": "bfloat16", "has_bias": False, "features": features}
    small = linear(1, 1024 - 1, **options)
    large = linear(1, 151936 - 1, **options)
    assert len(large.script().splitlines()) == len(small.script().splitlines())


def test_is_marked_as_scheduled():
    func = linear(1, 8, inputs=8, weight_dtype="float32", has_bias=True, features=from_names([]))
    assert func.attrs["tirx.is_scheduled"]
    # TVM fills `params` from C++.
    parameters = func.params  # pyright: ignore[reportAttributeAccessIssue]
    assert [p.name for p in parameters] == ["x", "weight", "bias", "y"]
    assert isinstance(func, tvm.tirx.PrimFunc)
