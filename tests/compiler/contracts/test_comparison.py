"""The verdict of a report: one for the command line and the page."""

import pytest

from compiler.contracts.comparison import Comparison, Finding, Report, SemanticCheck

HELD = SemanticCheck("causality", "pass", "holds")
BROKEN = SemanticCheck("padding", "fail", "it is seen")
UNTRIED = SemanticCheck("batch-rows", "not-applicable", "bundles hold one row")
MISSING = Comparison("torch", "vacc", "tap", findings=(Finding("missing", "vacc", "no driver"),))


@pytest.mark.parametrize(
    ("report", "passed"),
    [
        (Report(), None),
        (Report(semantic={"a": (UNTRIED,)}), None),
        (Report(semantic={"a": (UNTRIED, HELD)}), True),
        (Report(semantic={"a": (HELD,), "b": (BROKEN,)}), False),
        (Report((MISSING,)), False),
        (Report((MISSING,), semantic={"a": (HELD,)}), False),
        (Report((Comparison("torch", "llvm", "tap"),)), False),
    ],
)
def test_a_report_passes_where_something_was_held_and_nothing_is_wrong(
    report: Report, passed: bool | None
) -> None:
    assert report.passed is passed
