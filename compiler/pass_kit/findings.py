"""What a pass did wrong, as the checks say it to each other and to whoever asked."""

import traceback
from dataclasses import dataclass
from typing import Literal

from compiler.numerics.feeds import Lengths

Check = Literal[
    "run",
    "structure",
    "signature",
    "report",
    "numbers",
    "invariants",
    "repeat",
    "determinism",
]


@dataclass(frozen=True)
class Finding:
    """What a pass did wrong.

    Attributes:
        check: What it failed.
        kind: Which way, so that two findings can be held to be the same fault.
        said: A sentence with the values in it.
        lengths: Where it showed in numbers.
    """

    check: Check
    kind: str
    said: str
    lengths: Lengths | None = None

    def is_like(self, other: "Finding | None") -> bool:
        """Whether both are the same kind of fault."""
        return other is not None and (self.check, self.kind) == (other.check, other.kind)


class Found(Exception):
    """Carries a finding out of the checks."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.said)
        self.finding = finding


def raised(name: str, error: Exception) -> Found:
    """The finding that `name`, a part of the pass, raised what it may not raise."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    said = f"{name} raises {type(error).__name__}: {error} ({place})"
    return Found(Finding("run", f"{name}: {type(error).__name__}", said))
