"""Shapes of known axes become constants."""

import pytest
from pass_checks import PassChecks
from program_text import Golden

from compiler.contracts.pass_base import Contract, Skip
from passes.fold_shapes import FoldShapes

CHECKS = PassChecks(FoldShapes())


def test_golden_and_second_run(golden: Golden):
    report = CHECKS.rewritten(golden)
    assert report.rewrites == ("ids/Shape", "cache/Shape_1")
    assert report.skips == (Skip("whole/Shape", "its output is the graph's"),)


def test_the_same_numbers():
    CHECKS.assert_numbers()


@pytest.mark.parametrize("axis", ["tokens", "n"])
def test_an_unknown_length_is_no_candidate(axis: str):
    report = CHECKS.on({"int64[1, 4] ids": f"int64[1, {axis}] ids"})
    assert report.rewrites == ("cache/Shape_1",)


def test_an_unknown_rank_is_no_candidate():
    """What a Reshape to a given shape makes is not known."""
    report = CHECKS.on(
        {
            "int64[1, 4] ids,": "int64[1, 4] ids, int64[rank] given,",
            '["ids/Shape"] length = Shape <start: int = 1, end: int = 2> (ids)': (
                '["ids/Reshape"] other = Reshape (ids, given)\n'
                '  ["ids/Shape"] length = Shape <start: int = 1, end: int = 2> (other)'
            ),
        }
    )
    assert report.rewrites == ("cache/Shape_1",)


def test_options():
    assert FoldShapes().promise() == Contract.exact()
    assert FoldShapes.phases == ("prefill", "decode")
