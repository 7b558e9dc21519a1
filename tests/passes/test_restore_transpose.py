"""Reshape, Transpose, Reshape that exchange the last two axes become one Transpose."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract
from passes.restore_transpose import RestoreTranspose

CHECKS = PassChecks(RestoreTranspose())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("k/Transpose", "z/Transpose")
    assert report.skips == ()


def test_the_same_numbers():
    CHECKS.assert_numbers()


DECLINED = {
    "the lengths are merged in another order": (
        {"(last, length, width)": "(last, width, length)"},
        "k/Reshape does not keep the last two axes of x",
    ),
    "the result keeps the order": (
        {"(front, width, length)": "(front, length, width)"},
        "k/Reshape_1 does not exchange the last two axes of x",
    ),
    "an entry is computed": (
        {
            "(front, width, length)": "(front, width, doubled)",
            '["k/Concat_1"]': '["k/Add"] doubled = Add (length, length)\n  ["k/Concat_1"]',
        },
        "k/Reshape_1 does not exchange the last two axes of x",
    ),
    "the shape is sliced in steps": (
        {
            "Slice (shape, before, last)": "Slice (shape, before, last, zero, two)",
            "int64[1] last = {-1},": (
                "int64[1] last = {-1}, int64[1] zero = {0}, int64[1] two = {2},"
            ),
        },
        "k/Reshape does not keep the last two axes of x",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_moves_something_else_is_declined(case: str):
    replaced, reason = DECLINED[case]
    report = CHECKS.on(replaced)
    assert {skip.node: skip.reason for skip in report.skips} == {"k/Transpose": reason}
    assert report.rewrites == ("z/Transpose",)


def test_an_unknown_rank_is_declined():
    report = CHECKS.on(
        {
            "float[1, 4, s, 16] x,": "float[1, 4, s, 16] x0, int64[rank] given,",
            '["k/Shape"]': '["k/Reshape_2"] x = Reshape (x0, given)\n  ["k/Shape"]',
        }
    )
    assert {skip.node: skip.reason for skip in report.skips} == {
        "k/Transpose": "the rank of x is not known"
    }


def test_a_plain_transpose_is_no_candidate():
    report = CHECKS.on({"= Transpose <perm: ints = [0, 2, 1]> (flat)": "= Identity (flat)"})
    assert report.rewrites == ("z/Transpose",)
    assert report.skips == ()


def test_options():
    assert RestoreTranspose().promise() == Contract.exact()
    assert RestoreTranspose.after == ("fold-shapes", "fold-constants")
