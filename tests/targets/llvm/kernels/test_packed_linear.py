"""Products with packed weights against numpy in float64, within what their arithmetic may lose."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from packed_weights import packed

from targets.llvm.features import detect, has_tiles
from targets.llvm.kernels.packed_linear import PackedMatrix, packed_linear

pytestmark = pytest.mark.skipif(not has_tiles(detect()), reason="this CPU has no AMX")

# (rows, outputs of each weight, inputs): decode, fewer rows than a tile, every kind of remainder,
# several weights, a weight smaller than a block, and rows of more than one panel.
SHAPES = [
    (1, (64,), 64),
    (1, (1,), 3),
    (1, (37, 5), 100),
    (2, (40,), 64),
    (5, (16, 48), 130),
    (16, (33,), 31),
    (17, (37, 32), 100),
    (33, (48,), 130),
    (70, (20, 7, 64), 72),
    (600, (40,), 1100),
]
FORMS = ("floats", "rounded", "bytes", "codes")
UNIT = 2.0**-24


@dataclass(frozen=True)
class Case:
    """One product: what the kernel is given, what is expected of it, and how far it may be off."""

    arguments: list[np.ndarray]
    expected: list[np.ndarray]
    bounds: list[np.ndarray]


def case(form: str, rows: int, outputs: tuple[int, ...], inputs: int, rng) -> Case:
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    wide = x.astype(np.float64)
    arguments: list[np.ndarray] = [x]
    # What one entry of x may be off by: half a step of fixed point.
    step = np.zeros((rows, 1))
    absmax = np.abs(wide).max(1, keepdims=True)
    if form == "rounded":
        wide = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    elif form == "bytes":
        step = absmax / (2.0**23 - 16 if rows == 1 else 32767)
    elif form == "codes":
        scales = (absmax / 127).astype(np.float32)
        codes = np.rint(x / scales).astype(np.int8)
        arguments = [codes, scales[:, 0].copy()]
        wide = codes * scales.astype(np.float64)
    expected, bounds = [], []
    for number, count in enumerate(outputs):
        if form in ("bytes", "codes"):
            codes = rng.integers(-127, 128, (count, inputs), dtype=np.int8)
            scale = rng.uniform(0.5, 2, count).astype(np.float32)
            weight = codes * scale.astype(np.float64)[:, None]
            arguments += [packed(codes), scale]
        else:
            stored = rng.standard_normal((count, inputs)).astype(ml_dtypes.bfloat16)
            weight = stored.astype(np.float64)
            arguments += [packed(stored)]
        bias = rng.standard_normal(count, dtype=np.float32)
        if has_bias(number):
            arguments.append(bias)
        expected.append(wide @ weight.T + (bias if has_bias(number) else 0))
        sizes = np.abs(wide) @ np.abs(weight).T + np.abs(bias)
        # fp32 sums: Higham, Accuracy and Stability of Numerical Algorithms, 3.1. Integers are
        # exact; their sum is converted, scaled and joined in a few roundings.
        roundings = inputs + 2 if form in ("floats", "rounded") else 8
        bounds.append(roundings * UNIT * sizes + 0.51 * step * np.abs(weight).sum(1))
    return Case(arguments, expected, bounds)


def has_bias(number: int) -> bool:
    return number != 1


def kernel(form: str, rows: int, outputs: tuple[int, ...], inputs: int, **options: bool):
    matrices = [PackedMatrix(count, has_bias(number)) for number, count in enumerate(outputs)]
    return packed_linear(
        rows,
        matrices,
        inputs=inputs,
        weight_dtype="int8" if form in ("bytes", "codes") else "bfloat16",
        x_dtype="int8" if form == "codes" else "float32",
        is_rounded=form == "rounded" and rows > 1,
        **options,
    )


def results(rows: int, outputs: tuple[int, ...]) -> list[np.ndarray]:
    return [np.full((rows, count), np.nan, np.float32) for count in outputs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), SHAPES)
def test_matches_float64(execute_tiles, rng, form, rows, outputs, inputs):
    if rows == 1 and form == "rounded":
        form = "floats"
    given = case(form, rows, outputs, inputs, rng)
    func = kernel(form, rows, outputs, inputs)
    *_, last = [None, *execute_tiles(func, [*given.arguments, *results(rows, outputs)])]
    found = execute_tiles(func, [*given.arguments, *results(rows, outputs)])[-len(outputs) :]
    assert np.array_equal(found[-1], last), "two calls give the same bits"
    for got, expected, bound in zip(found, given.expected, given.bounds, strict=True):
        assert np.all(np.abs(got - expected) <= bound)


@pytest.mark.parametrize("form", ["rounded", "bytes", "codes"])
@pytest.mark.parametrize("valid", [0, 1, 16, 33, 100])
def test_rows_past_the_limit_are_not_computed(execute_tiles, rng, form, valid):
    rows, outputs, inputs = 100, (64,), 96
    given = case(form, rows, outputs, inputs, rng)
    func = kernel(form, rows, outputs, inputs, has_limit=True)
    limit = np.array([valid], np.int64)
    *_, got = execute_tiles(func, [*given.arguments, limit, *results(rows, outputs)])
    assert np.all(np.abs(got - given.expected[0])[:valid] <= given.bounds[0][:valid])
    group = 16 if form == "bytes" else 32
    assert np.isnan(got[-(-valid // group) * group :]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 40])
def test_gate_and_up_give_their_activation(execute_tiles, rng, form, rows):
    if rows == 1 and form == "rounded":
        form = "floats"
    given = case(form, rows, (50, 50), 72, rng)
    func = kernel(form, rows, (50, 50), 72, is_gated=True)
    *_, got = execute_tiles(func, [*given.arguments, *results(rows, (50,))])
    gate, up = given.expected
    silu = gate * (1 + np.tanh(gate / 2)) / 2
    expected = silu * up
    # silu's slope is at most 1.1; the activation is off by what its factors are, and 8 roundings.
    bound = 1.1 * given.bounds[0] * np.abs(up) + given.bounds[1] * np.abs(silu)
    bound += 8 * UNIT * np.abs(expected) + 1.1 * given.bounds[0] * given.bounds[1]
    assert np.all(np.abs(got - expected) <= bound)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_largest_entry_stays_within_its_bytes(execute_tiles, rows):
    """absmax / scale, rounded, must not leave the fixed point: it would change its sign."""
    codes = np.ones((32, 64), np.int8)
    func = kernel("bytes", rows, (32,), 64)
    for exponent in range(-60, 60, 7):
        for mantissa in np.linspace(1, 2, 40, dtype=np.float32):
            x = np.zeros((rows, 64), np.float32)
            x[:, 5] = mantissa * np.float32(2.0**exponent) * np.array([1, -1, 1][:rows])
            arguments = [x, packed(codes), np.ones(32, np.float32), np.zeros(32, np.float32)]
            *_, got = execute_tiles(func, [*arguments, *results(rows, (32,))])
            np.testing.assert_allclose(got, np.repeat(x[:, 5:6], 32, 1), rtol=4 * UNIT)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_gives_none(execute_tiles, rng, rows, bad):
    given = case("bytes", rows, (32,), 64, rng)
    given.arguments[0][0, 7] = bad
    func = kernel("bytes", rows, (32,), 64)
    *_, got = execute_tiles(func, [*given.arguments, *results(rows, (32,))])
    assert not np.isfinite(got[0]).any()
    assert np.isfinite(got[1:]).all()


def test_zeros_give_the_bias(execute_tiles, rng):
    given = case("bytes", 3, (32,), 64, rng)
    given.arguments[0][:] = 0
    func = kernel("bytes", 3, (32,), 64)
    *_, got = execute_tiles(func, [*given.arguments, *results(3, (32,))])
    assert np.array_equal(got, np.tile(given.arguments[-1], (3, 1)))
