"""Which of a candidate's taps is wrong by itself, and which is off most."""

import math
from collections.abc import Sequence

import numpy as np

from compiler.comparing.limits import passing_limit
from compiler.contracts.comparison import Finding, TapComparison
from compiler.contracts.taps import Tap


def first_fault(taps: Sequence[TapComparison]) -> Finding | None:
    """The first tap that is wrong by itself: its inputs were the reference's, its value is not.

    Args:
        taps: In the order of computation. Of one without a local error all that is known is that
            it is outside the limit of accumulated errors.
    """
    fault = next((tap for tap in taps if tap.status != "pass"), None)
    if fault is None:
        return None
    place = str(place_of(fault))
    if fault.status != "fail":
        said = f"{place} is the first tap that cannot be compared, in {fault.call}: {fault.status}"
        return Finding("fault", place, said, layer=fault.layer, point=fault.point)
    measures = fault.local or fault.accumulated
    how, limit = (
        ("wrong by itself, computed from the reference's values", "max_local")
        if fault.local is not None
        else ("outside the limit, its own error and what came before it together", "max_rel")
    )
    said = (
        f"{place} is the first tap that is {how}: in {fault.call} it is off by "
        f"{measures.max_rel:.2g} of its largest value ({measures.max_abs:.2g})"
    )
    usual = _usual(taps, fault)
    if usual is not None:
        said += f"; in other layers {fault.point} is off by {usual:.2g}"
    hint = f"compare: {{{limit}: {passing_limit(limit, measures.max_rel)}}} would pass"
    return Finding("fault", place, said, hint, layer=fault.layer, point=fault.point)


def largest_local(taps: Sequence[TapComparison]) -> TapComparison | None:
    """The tap with the largest local error; what is not a number is larger than any."""
    measured = [tap for tap in taps if tap.local is not None]
    return max(measured, key=_size, default=None)


def place_of(comparison: TapComparison) -> Tap:
    """The tap that was compared."""
    return Tap(comparison.layer, comparison.point)


def _size(tap: TapComparison) -> float:
    assert tap.local is not None, "only what was measured is ordered"
    size = tap.local.max_rel
    return math.inf if math.isnan(size) else size


def _usual(taps: Sequence[TapComparison], fault: TapComparison) -> float | None:
    """Median local error of the same point in other layers; None where there is none."""
    others = [
        tap.local.max_rel
        for tap in taps
        if tap.point == fault.point and tap.layer != fault.layer and tap.local is not None
    ]
    numbers = [error for error in others if not math.isnan(error)]
    return float(np.median(numbers)) if numbers else None
