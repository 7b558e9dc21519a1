"""int8 by int8: sums are exact, so that nothing but three roundings parts it from float64."""

import os

# TVM's pool counts physical cores; two threads show what one hides. Read when TVM first launches.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import numpy as np
import pytest

from targets.llvm.features import CpuFeatures, detect, from_names, missing
from targets.llvm.kernels.byte_products import EXACT_INPUTS, byte_products
from targets.llvm.kernels.integer_linear import integer_linear

_LEVELS = {
    "avx512_vnni": ("avx2", "avx512bw", "avx512f", "avx512vl", "avx512_vnni", "fma"),
    "avx_vnni": ("avx2", "avx_vnni", "fma"),
    "avx512": ("avx2", "avx512bw", "avx512f", "avx512vl", "fma"),
    "avx2": ("avx2", "fma"),
    "sse2": (),
}
# Whole vectors of 64 codes and every kind of remainder: of the four codes of a lane, too.
_SHAPES = [
    (1, 64, 128),
    (1, 37, 100),
    (1, 1, 3),
    (2, 19, 33),
    (4, 5, 7),
    (5, 3, 9),
    (17, 40, 130),
    (48, 24, 64),
    (128, 16, 72),
    (100, 33, 2050),
]


@pytest.fixture(params=[*_LEVELS, "detected"])
def features(request: pytest.FixtureRequest) -> CpuFeatures:
    """Each way of multiplying, where this machine can."""
    present = detect()
    if request.param == "detected":
        return present
    level = from_names(_LEVELS[request.param])
    lacking = missing(level, present)
    if lacking:
        pytest.skip(f"this machine lacks {', '.join(lacking)}")
    return level


def run(features, execute, codes, scales, weight, scale, bias) -> np.ndarray:
    rows, outputs = len(codes), len(weight)
    func = integer_linear(
        rows, outputs, inputs=codes.shape[1], has_bias=bias is not None, features=features
    )
    y = np.full((rows, outputs), np.nan, np.float32)
    given = [codes, scales, weight, scale, *([] if bias is None else [bias]), y]
    *_, got = execute(func, given)
    return got


@pytest.mark.parametrize(("rows", "outputs", "inputs"), _SHAPES)
def test_matches_numpy(features, execute, rng, rows, outputs, inputs):
    codes = rng.integers(-127, 128, (rows, inputs), dtype=np.int8)
    weight = rng.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    scales = rng.uniform(0.5, 2, rows).astype(np.float32) / 127
    scale = rng.uniform(0.5, 2, outputs).astype(np.float32) / 127
    bias = rng.standard_normal(outputs, dtype=np.float32) if outputs % 2 else None
    got = run(features, execute, codes, scales, weight, scale, bias)
    sums = codes.astype(np.int64) @ weight.T.astype(np.int64)
    product = sums * scales[:, None].astype(np.float64) * scale
    expected = product + (0 if bias is None else bias)
    # The sum, its two products and the bias are rounded once each.
    bound = 2.0**-24 * (3 * np.abs(product) + np.abs(expected)) * 1.01
    assert np.all(np.abs(got - expected) <= bound)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_are_exact(features, execute, rows, sign):
    """Partial sums of VNNI leave int32 on the way, and come back."""
    inputs = 70_000
    codes = np.full((rows, inputs), 127, np.int8)
    weight = np.full((3, inputs), sign * 127, np.int8)
    ones = np.ones(rows, np.float32), np.ones(3, np.float32)
    got = run(features, execute, codes, ones[0], weight, ones[1], None)
    assert np.all(got == np.float32(sign * inputs * 127**2))


def test_prefill_gives_decodes_bits(features, execute, rng):
    codes = rng.integers(-127, 128, (9, 200), dtype=np.int8)
    weight = rng.integers(-127, 128, (21, 200), dtype=np.int8)
    scales, scale = rng.uniform(0.01, 1, 9), rng.uniform(0.01, 1, 21)
    scales, scale = scales.astype(np.float32), scale.astype(np.float32)
    whole = run(features, execute, codes, scales, weight, scale, None)
    single = [
        run(features, execute, codes[m : m + 1], scales[m : m + 1], weight, scale, None)
        for m in range(9)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(single))


def test_the_widest_instruction_is_taken():
    names = {name: byte_products(from_names(flags)) for name, flags in _LEVELS.items()}
    assert {name: one.step for name, one in names.items()} == {
        "avx512_vnni": 64,
        "avx_vnni": 32,
        "avx512": 16,
        "avx2": 8,
        "sse2": 4,
    }
    assert [name for name, one in names.items() if one.intrinsic] == ["avx512_vnni", "avx_vnni"]
    assert EXACT_INPUTS * 127**2 < 2**31 <= (EXACT_INPUTS + 1) * 127**2
