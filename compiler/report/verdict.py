"""Passed or failed, in words, with counts."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from compiler.contracts.comparison import Comparison, Report
from compiler.report.words import counted

_KINDS = {
    "nan": "not a number",
    "infinite": "infinite",
    "shape": "of another shape",
    "dtype": "of another dtype",
    "limit": "outside a limit",
    "fault": "wrong by itself",
    "observation": "changed by watching",
    "missing": "missing",
}


@dataclass(frozen=True)
class Verdict:
    """What a reader sees first.

    Attributes:
        state: `open` where nothing was held to anything.
        word: `Passed`.
        said: Why, in a few sentences.
    """

    state: Literal["passed", "failed", "open"]
    word: str
    said: str


def verdict(report: Report) -> Verdict:
    """Of everything that was compared and checked."""
    checks = [check for checks in report.semantic.values() for check in checks]
    if report.passed is None:
        return Verdict("open", "No verdict", "No candidate was compared, and nothing was checked.")
    broken = sum(check.status == "fail" for check in checks)
    said = []
    if report.comparisons:
        said.append(_of_candidates(report.comparisons))
    if checks:
        held = sum(check.status == "pass" for check in checks)
        said.append(
            f"{counted(broken, 'semantic check')} failed, {held} held."
            if broken
            else f"{counted(held, 'semantic check')} held."
        )
    word = ("passed", "Passed") if report.passed else ("failed", "Failed")
    return Verdict(word[0], word[1], " ".join(said))


def comparison_verdict(comparison: Comparison) -> Verdict:
    """Of one candidate."""
    if comparison.passed:
        return Verdict("passed", "Passed", f"{_compared(comparison)}: nothing is wrong.")
    if not comparison.findings:
        return Verdict("failed", "Failed", "Nothing was compared.")
    return Verdict("failed", "Failed", f"{_compared(comparison)}: {_found([comparison])}.")


def kind_in_words(kind: str) -> str:
    """What a finding's kind means; itself where it is not known."""
    return _KINDS.get(kind, kind)


def _of_candidates(comparisons: tuple[Comparison, ...]) -> str:
    failed = [one for one in comparisons if not one.passed]
    if not failed and len(comparisons) == 1:
        only = comparisons[0]
        return f"{only.candidate} agrees with {only.reference}; no findings."
    if not failed:
        return f"All {len(comparisons)} candidates agree with the reference; no findings."
    who = (
        comparisons[0].candidate
        if len(comparisons) == 1
        else f"{len(failed)} of {len(comparisons)} candidates"
    )
    count = sum(len(one.findings) for one in failed)
    if not count:
        return f"{who} failed: nothing was compared."
    return f"{who} failed, with {_found(failed)}."


def _found(comparisons: list[Comparison]) -> str:
    kinds = Counter(finding.kind for one in comparisons for finding in one.findings)
    said = ", ".join(f"{count} {kind_in_words(kind)}" for kind, count in sorted(kinds.items()))
    return f"{counted(sum(kinds.values()), 'finding')} ({said})"


def _compared(comparison: Comparison) -> str:
    parts = []
    if comparison.steps:
        parts.append(counted(len(comparison.steps), "step"))
    if comparison.taps:
        parts.append(counted(len(comparison.taps), "tap"))
    return " and ".join(parts) or "Nothing compared"
