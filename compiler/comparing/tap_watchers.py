"""Observers of a run: one keeps every tap, one holds each against the reference's.

Of each side the rows of one tap are in memory at a time. A runner may make a call in parts (token
by token, where a window must be full): it then shows a tap in parts, each of which is held against
the rows of the reference that it stands for; the call's logits are those of the last part.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from compiler.comparing.measures import compare_tensors
from compiler.contracts.comparison import Measures, TensorStatus
from compiler.contracts.taps import Observer, Tap
from compiler.tap_store import TapFolder, TapSource

LOGITS = Tap(None, "logits")
_NO_NUMBERS = Measures(math.nan, math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Measured:
    """One tap's largest error over all calls.

    Attributes:
        status: What made the comparison of that call meaningless; None with numbers.
        measures: Of that call.
        call: Its name.
        is_recomputed: Whether the value there is not the target's own.
    """

    status: TensorStatus | None
    measures: Measures
    call: str
    is_recomputed: bool = False


class Watcher(Observer):
    """Follows the calls of one run.

    Attributes:
        call: The one that is running.
    """

    def __init__(self, points: frozenset[str]) -> None:
        self.points = points
        self.call = ""
        # Rows of each tap that this call has shown.
        self.shown: dict[Tap, int] = {}
        self._logits: np.ndarray | None = None

    def begin(self, call: str) -> None:
        """A call is about to run."""
        self.call, self.shown, self._logits = call, {}, None

    def end(self) -> None:
        """It has run."""
        if self._logits is not None:
            self.take(LOGITS, self._logits, 0)

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        """Rows of a tap; logits wait until they are known to be the call's last."""
        if tap == LOGITS:
            self._logits = rows
            return None
        start = self.shown.get(tap, 0)
        self.shown[tap] = start + len(rows)
        return self.take(tap, rows, start)

    @abstractmethod
    def take(self, tap: Tap, rows: np.ndarray, start: int) -> np.ndarray | None:
        """Rows of this call from row `start` on; what to go on with instead, as in `see`."""


class Recorder(Watcher):
    """Keeps every tap."""

    def __init__(self, store: TapFolder, points: frozenset[str]) -> None:
        super().__init__(points)
        self._store = store

    def take(self, tap: Tap, rows: np.ndarray, start: int) -> None:
        """Keep the rows."""
        del start
        self._store.put(self.call, tap, rows)


class Holder(Watcher):
    """Holds every tap against the reference's, and may put that in its place.

    Args:
        reference: The reference's taps.
        points: To be held.
        forced: Points at which the reference's value is put in place, once measured.
        kept: Where to keep what is shown.

    Attributes:
        worst: The largest error of each tap.
        seen: Every call and tap that was shown.
    """

    is_recomputed = False

    def __init__(
        self,
        reference: TapSource,
        points: frozenset[str],
        *,
        forced: frozenset[str] = frozenset(),
        kept: TapFolder | None = None,
    ) -> None:
        super().__init__(points)
        self.worst: dict[Tap, Measured] = {}
        self.seen: set[tuple[str, Tap]] = set()
        self._reference, self._forced, self._kept = reference, forced, kept
        # Rows of each tap of this call, in the reference.
        self._wanted: dict[Tap, int] = {}

    def begin(self, call: str) -> None:
        """A call is about to run."""
        super().begin(call)
        self._wanted = {}

    def end(self) -> None:
        """It has run; rows that never came are missed."""
        super().end()
        for tap, count in self._wanted.items():
            if self.shown.get(tap, count) < count:
                self.keep(tap, Measured("shape", _NO_NUMBERS, self.call, self.is_recomputed))

    def take(self, tap: Tap, rows: np.ndarray, start: int) -> np.ndarray | None:
        """Measure the rows."""
        self.seen.add((self.call, tap))
        if self._kept is not None:
            self._kept.put(self.call, tap, rows)
        whole = self._reference.get(self.call, tap)
        if whole is None:
            return None
        self._wanted[tap] = len(whole)
        wanted = whole[start : start + len(rows)]
        status, measures = compare_tensors(wanted, rows)
        self.keep(tap, Measured(status, measures, self.call, self.is_recomputed))
        is_put = tap.point in self._forced and wanted.shape == rows.shape
        return wanted if is_put else None

    def keep(self, tap: Tap, found: Measured) -> None:
        """Remember an error where it is the largest; what gives no numbers is larger than any."""
        standing = self.worst.get(tap)
        if standing is None or _severity(found) > _severity(standing):
            self.worst[tap] = found


class Recomputer(Holder):
    """Holds what a target did not show, computed from what it did show.

    Args:
        reference: The reference's taps.
        points: To be held.
        forced: Points of what it did not show at which the reference's value is put in place.
        shown: Every call and tap that the target showed.
        held: The values to put there: its own, or the reference's.
        put: Points at which they are put.
    """

    is_recomputed = True

    def __init__(
        self,
        reference: TapSource,
        points: frozenset[str],
        *,
        forced: frozenset[str],
        shown: set[tuple[str, Tap]],
        held: TapSource,
        put: frozenset[str],
    ) -> None:
        super().__init__(reference, points | put, forced=forced)
        self._held_points, self._put = points, put
        self._was_shown, self._held = shown, held

    def take(self, tap: Tap, rows: np.ndarray, start: int) -> np.ndarray | None:
        """Put what was shown in its place; measure the rest."""
        if (self.call, tap) not in self._was_shown:
            return super().take(tap, rows, start) if tap.point in self._held_points else None
        whole = self._held.get(self.call, tap) if tap.point in self._put else None
        if whole is None:
            return None
        held = whole[start : start + len(rows)]
        return held if held.shape == rows.shape else None


def _severity(measured: Measured) -> tuple[bool, float]:
    return measured.status is not None, measured.measures.max_rel
