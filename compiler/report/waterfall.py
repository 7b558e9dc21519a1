"""The ladder: each step's signed share of the whole difference, one after another, up to 1."""

import math
from collections.abc import Sequence
from itertools import accumulate

from compiler.contracts.comparison import Ladder, LadderStep
from compiler.report.axes import step_for
from compiler.report.svg import box, label, line, picture
from compiler.report.words import number, shortened, signed_share

_WIDTH, _PLOT_RIGHT = 960.0, 850.0
_TOP, _ROW, _BAR = 8.0, 32.0, 18.0
_MOST_NAME, _CHARACTER = 30, 6.9
_WHOLE = "the whole difference"


def waterfall(ladder: Ladder) -> str:
    """The drawing of a ladder; "" where it has no steps or no share is a number."""
    steps = ladder.steps
    if not any(math.isfinite(step.share) for step in steps):
        return ""
    ends = list(accumulate(_finite(step.share) for step in steps))
    starts = [0.0, *ends[:-1]]
    low, high = min(0.0, *ends), max(1.0, *ends)

    names = [shortened(step.name, _MOST_NAME) for step in steps]
    left = 24 + _CHARACTER * max(len(name) for name in (*names, _WHOLE))

    def at(share: float) -> float:
        return left + (share - low) / (high - low) * (_PLOT_RIGHT - left)

    bottom = _TOP + (len(steps) + 1) * _ROW
    drawn = []
    for percent in _ticks(low, high):
        x = at(percent / 100)
        drawn.append(line("axis" if percent == 0 else "grid", (x, _TOP), (x, bottom)))
        drawn.append(label(x, bottom + 18, f"{percent}%".replace("-", "\N{MINUS SIGN}"), "middle"))
    for index, (step, start, end) in enumerate(zip(steps, starts, ends, strict=True)):
        is_largest = step.name == ladder.largest
        y = _TOP + index * _ROW
        drawn.append(_name(names[index], (left, y), is_largest=is_largest))
        drawn.append(_bar(step, (at(start), at(end)), y, is_largest=is_largest))
        drawn.append(_share(step, max(at(start), at(end)), y, is_largest=is_largest))
        # To the next bar, which begins where this one ends.
        drawn.append(line("link", (at(end), y + 7 + _BAR), (at(end), y + _ROW + 7)))
    total = _TOP + len(steps) * _ROW
    drawn.append(_name(_WHOLE, (left, total), is_largest=False))
    drawn.append(box("whole", (at(0), total + 7), (at(ends[-1]) - at(0), _BAR), "all steps"))
    drawn.append(label(at(ends[-1]) + 8, total + 21, f"{100 * ends[-1]:.0f}%"))
    return picture(
        _WIDTH,
        bottom + 28,
        *drawn,
        title="The whole difference, step by step",
        description=_described(steps, ladder.largest),
    )


def _name(name: str, corner: tuple[float, float], *, is_largest: bool) -> str:
    return label(corner[0] - 12, corner[1] + 21, name, "end strong" if is_largest else "end")


def _bar(step: LadderStep, ends: tuple[float, float], y: float, *, is_largest: bool) -> str:
    kind = "less" if step.share < 0 else "more"
    said = f"{step.name}\nshare {signed_share(step.share)}\nlargest change {number(step.max_abs)}"
    # A share of nothing is still seen.
    width = max(abs(ends[1] - ends[0]), 1.5)
    return box(f"{kind} largest" if is_largest else kind, (min(ends), y + 7), (width, _BAR), said)


def _share(step: LadderStep, x: float, y: float, *, is_largest: bool) -> str:
    said = signed_share(step.share)
    if is_largest:
        return label(x + 8, y + 21, f"{said}  largest", "strong")
    return label(x + 8, y + 21, said)


def _ticks(low: float, high: float) -> range:
    first, last = math.ceil(100 * low - 1e-6), math.floor(100 * high + 1e-6)
    step = 25 if last - first <= 200 else step_for(last - first, 8)
    return range(math.ceil(first / step) * step, last + 1, step)


def _finite(share: float) -> float:
    return share if math.isfinite(share) else 0.0


def _described(steps: Sequence[LadderStep], largest: str) -> str:
    said = "; ".join(f"{step.name} {signed_share(step.share)}" for step in steps)
    return f"{said}. The largest is {largest}."
