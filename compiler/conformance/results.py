"""What a check of the suite found."""

from dataclasses import dataclass
from typing import Literal

# `not-applicable` and `not-shown` are never counted as passed.
Status = Literal["pass", "fail", "not-applicable", "not-shown"]


@dataclass(frozen=True)
class Outcome:
    """Of one check, before it has its name.

    Attributes:
        status: As in `CheckResult`.
        said: One sentence.
        expected: Of a failure, what should have been.
        came: Of a failure, what was.
        look_at: Of a failure, where to begin.
    """

    status: Status
    said: str
    expected: str = ""
    came: str = ""
    look_at: str = ""


@dataclass(frozen=True)
class CheckResult:
    """One check on one target.

    Attributes:
        name: As `--only` takes it.
        status: `pass`, `fail`, `not-applicable` (this kind of target has nothing to try), or
            `not-shown` (the target says that it does not show what is asked for).
        said: What was tried, what failed, or why nothing was tried.
        expected: Of a failure, what should have been.
        came: Of a failure, what was.
        look_at: Of a failure, where to begin.
    """

    name: str
    status: Status
    said: str
    expected: str = ""
    came: str = ""
    look_at: str = ""


@dataclass(frozen=True)
class ConformanceReport:
    """The whole suite on one target.

    Attributes:
        target: Its name.
        owner: The distribution that brings it.
        dtype: What was built: the first of fp32, bf16 and fp16 that its constraints accept; empty
            where nothing is built.
        reference: What its numbers were held against.
        seed: Of weights and tokens.
        checks: In the order of the suite.
    """

    target: str
    owner: str
    dtype: str
    reference: str
    seed: int
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Something was tried, and nothing failed."""
        statuses = {check.status for check in self.checks}
        return "pass" in statuses and "fail" not in statuses


def passed(said: str) -> Outcome:
    """It holds."""
    return Outcome("pass", said)


def failed(said: str, *, expected: str, came: str, look_at: str) -> Outcome:
    """It does not hold."""
    return Outcome("fail", said, expected, came, look_at)


def not_applicable(why: str) -> Outcome:
    """There is nothing to try."""
    return Outcome("not-applicable", why)


def not_shown(why: str) -> Outcome:
    """The target says that it does not show it."""
    return Outcome("not-shown", why)
