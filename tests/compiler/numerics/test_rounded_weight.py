"""Rounding through layouts: each channel, or group of a channel, by its own absmax."""

import numpy as np
import pytest

from compiler.contracts.weight_values import RowReader, value
from compiler.contracts.weights import (
    Weight,
    calibrated,
    concat,
    cut,
    quantize,
    scale,
    source,
    transpose,
    zeros,
)
from compiler.numerics.rounded_weight import rounded_weight

ARRAYS = {
    "a.weight": np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32),
    "b.weight": np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32),
}
A, B = (source(name, array.shape, "float32") for name, array in ARRAYS.items())


def read(name: str, start: int, stop: int) -> np.ndarray:
    return ARRAYS[name][start:stop]


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 0), (8, 4), (4, 2)])
def test_it_is_codes_times_scales(bits: int, group: int):
    codes, scales = (
        value(make(A, axis=0, bits=bits, group=group), reader()) for make in (quantize, scale)
    )
    wide = scales.reshape(6, -1).repeat(group or 8, axis=1)
    found = rounded_weight(quantize(A, axis=0, bits=bits, group=group), read)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, codes * wide)
    assert 0 < np.abs(found - ARRAYS["a.weight"]).max() <= wide.max() / 2 * 1.0001


def reader() -> RowReader:
    return read


@pytest.mark.parametrize(
    ("layout", "wanted"),
    [
        (lambda a, b: transpose(a), lambda a, b: a.T),
        (lambda a, b: concat([b, a]), lambda a, b: np.concatenate([b, a])),
        (lambda a, b: transpose(concat([a, b])), lambda a, b: np.concatenate([a, b]).T),
        (lambda a, b: cut(a, 0, 2, 5), lambda a, b: a[2:5]),
        (lambda a, b: cut(transpose(a), 1, 2, 5), lambda a, b: a.T[:, 2:5]),
        (lambda a, b: calibrated(a, "x"), lambda a, b: a),
        (
            lambda a, b: concat([a, zeros((3, 8), "int8")]),
            lambda a, b: np.concatenate([a, np.zeros((3, 8))]),
        ),
    ],
)
def test_layouts(layout, wanted):
    codes: Weight = layout(quantize(A, axis=0), quantize(B, axis=0))
    alone = [rounded_weight(quantize(one, axis=0), read) for one in (A, B)]
    found = rounded_weight(codes, read)
    assert found.shape == codes.shape
    np.testing.assert_array_equal(found, wanted(*alone))
