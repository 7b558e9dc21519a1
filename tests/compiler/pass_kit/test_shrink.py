"""A failing graph becomes one of a few nodes, and fails still when it is read back."""

from functools import cache
from pathlib import Path

import pytest
from buggy_passes import CAUGHT, DropsABias, RewritesForEver

from compiler.contracts.pass_base import Pass
from compiler.pass_kit import Failure, check_pass, text_of, try_pass
from compiler.pass_kit.counterexample import case_text, read_case
from compiler.pass_kit.shrink import fewest


@cache
def failure_of(rewriting: Pass) -> Failure:
    """Where a buggy pass fails; every test may look at it."""
    failure = try_pass(rewriting, graphs=20).failure
    assert failure is not None
    return failure


@pytest.mark.parametrize(("rewriting", "check"), CAUGHT, ids=lambda one: getattr(one, "name", one))
def test_a_buggy_pass_is_caught_with_a_few_nodes(rewriting: Pass, check: str, tmp_path: Path):
    failure = failure_of(rewriting)
    assert failure.finding.check == failure.found.check == check
    assert failure.finding.kind == failure.found.kind
    assert len(failure.case.program.graph.nodes) < 12

    file = tmp_path / "counterexample.txt"
    file.write_text(case_text(failure.case, remarks=[failure.finding.said]), encoding="utf-8")
    assert check_pass(rewriting, read_case(file)).finding == failure.finding


def test_the_numbers_are_shown_against_float64():
    failure = failure_of(DropsABias())
    assert "promises close(rtol=0.0001, atol=1e-05), but with " in failure.finding.said
    assert "expected " in failure.finding.said
    assert "; in float64 it is " in failure.finding.said
    assert "model.layers.0." not in text_of(failure.case.program)


def test_equal_seeds_give_equal_counterexamples():
    again = try_pass(RewritesForEver(), graphs=20).failure
    assert again is not None
    first = failure_of(RewritesForEver())
    assert case_text(again.case, remarks=[]) == case_text(first.case, remarks=[])


@pytest.mark.parametrize("needed", [{"a"}, {"h"}, {"b", "c"}, {"a", "e", "h"}, set("abcdefgh")])
def test_fewest_leaves_nothing_that_can_be_left_out(needed: set[str]):
    tried: list[str] = []

    def is_enough(names) -> bool:
        tried.append("".join(names))
        return needed <= set(names)

    assert fewest("abcdefgh", is_enough) == tuple(sorted(needed))
    assert all(tried), "nothing at all was tried"


def test_fewest_of_one_is_that_one():
    assert fewest(["a"], lambda names: True) == ("a",)
