"""Where a checkpoint tensor lies in an expression, held against the expression's own value."""

import numpy as np
import pytest

from compiler.contracts.placement import Placement, placements
from compiler.contracts.weight_values import value
from compiler.contracts.weights import Weight, cast, concat, cut, source, transpose, zeros

Q, K = source("q", (8, 6), "float32"), source("k", (4, 6), "float32")
BIAS = source("b", (8,), "float32")
JOINED = concat([Q, zeros((2, 6), "float32"), K])
# Expression, axis -> what lies there.
CASES: dict[str, tuple[Weight, int, str]] = {
    "source": (Q, 0, "q 0:8 at 0"),
    "source's columns": (Q, 1, "q 0:6 at 0"),
    "transpose": (transpose(Q), 1, "q 0:8 at 0"),
    "concat": (JOINED, 0, "k 0:4 at 10, q 0:8 at 0"),
    "concat's columns": (JOINED, 1, "k 0:6 at 0, q 0:6 at 0"),
    "slice over a seam": (cut(JOINED, 0, 6, 12), 0, "k 0:2 at 4, q 6:8 at 0"),
    "slice of zeros": (cut(JOINED, 0, 8, 10), 0, ""),
    "slice of the other axis": (cut(JOINED, 1, 1, 3), 0, "k 0:4 at 10, q 0:8 at 0"),
    "columns of a rank": (cut(transpose(Q), 1, 4, 8), 1, "q 4:8 at 0"),
    "cast": (cast(transpose(concat([K, K])), "bfloat16"), 1, "k 0:4 at 0, k 0:4 at 4"),
    "neighbours": (concat([cut(BIAS, 0, 0, 3), cut(BIAS, 0, 3, 8)]), 0, "b 0:8 at 0"),
    "neighbours, swapped": (
        concat([cut(BIAS, 0, 4, 8), cut(BIAS, 0, 0, 4)]),
        0,
        "b 4:8 at 0, b 0:4 at 4",
    ),
    "beside each other": (
        concat([cut(transpose(Q), 0, 0, 2), cut(transpose(Q), 0, 2, 6)]),
        1,
        "q 0:8 at 0",
    ),
}


def test_zeros_are_nobody_s():
    assert placements(zeros((4,), "float32"), 0) == ()
    assert placements(BIAS, 0) == (Placement("b", start=0, first=0, count=8),)


@pytest.mark.parametrize("case", CASES)
def test_placements(case: str):
    weight, axis, wanted = CASES[case]
    assert ", ".join(f"{one.source} {one}" for one in placements(weight, axis)) == wanted


SHAPES = {"q": (8, 6), "k": (4, 6), "b": (8,)}
CODES = {"q": 1, "k": 2, "b": 3}


def _read(name: str, start: int, stop: int) -> np.ndarray:
    """Every entry says whose it is and where it stood: 1 05 03 is q[5, 3]."""
    shape = SHAPES[name]
    row, column = np.indices((*shape, 1)[:2])
    coded = 10000 * CODES[name] + 100 * row + column
    return coded.reshape(shape)[start:stop].astype(np.float32)


@pytest.mark.parametrize("case", [case for case in CASES if case != "cast"])  # which rounds codes
def test_they_say_what_the_value_holds(case: str):
    weight, axis, _ = CASES[case]
    found = value(weight, _read).astype(np.int64)
    lines = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
    told: dict[str, set[int]] = {name: set() for name in CODES}
    for place in placements(weight, axis):
        for index in range(place.count):
            line = lines[place.start + index]
            entries = line[line // 10000 == CODES[place.source]]
            stood = [entries // 100 % 100, entries % 100]
            assert any((one == place.first + index).all() for one in stood)
            told[place.source].add(place.start + index)
    for name, code in CODES.items():
        assert told[name] == set(np.nonzero((lines // 10000 == code).any(axis=1))[0].tolist())


def test_an_operator_of_another_shape_has_no_places():
    packed = Weight("pack", (4, 6), "int8", (Q,))
    assert placements(packed, 0) == ()
    assert placements(Weight("quantize", (8, 6), "int8", (Q,)), 0) == placements(Q, 0)
