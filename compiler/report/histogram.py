"""How a figure is spread over the steps: bars over decades, zeros in a column of their own."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.contracts.comparison import Comparison
from compiler.report.axes import LogAxis, is_on_log, log_axis, step_for
from compiler.report.svg import box, label, line, picture
from compiler.report.words import counted, number

_WIDTH, _LEFT, _RIGHT = 304.0, 34.0, 14.0
_TOP, _PLOT, _AXIS = 28.0, 130.0, 26.0
# Of the column for zeros, and of the space that its label needs beside the axis's first.
_SIDE, _APART = 22.0, 24.0
_MOST_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """One figure's spread: what it is, the drawing, and its middle and ends in words."""

    name: str
    svg: str
    said: str


@dataclass(frozen=True)
class _Bar:
    x: float
    width: float
    count: int
    said: str


def histograms(comparison: Comparison) -> tuple[Histogram, ...]:
    """The spreads over a comparison's steps; nothing without steps."""
    steps, limits = comparison.steps, comparison.limits
    if not steps:
        return ()
    return (
        _histogram(
            "Largest difference of a step's logits",
            [step.measures.max_abs for step in steps],
            limit=limits.get("max_abs"),
        ),
        _histogram("KL divergence, nats", [step.kl for step in steps], limit=limits.get("max_kl")),
        _histogram("Margin of the first token", [step.margin for step in steps], limit=None),
    )


def _histogram(name: str, values: Sequence[float], *, limit: float | None) -> Histogram:
    placed = [value for value in values if is_on_log(value)]
    # Rounding takes a divergence of nothing below 0.
    floor = [value for value in values if math.isfinite(value) and value <= 0]
    unplaced = len(values) - len(placed) - len(floor)
    has_limit = limit is not None and is_on_log(limit)
    start = _LEFT + (_SIDE + _APART if floor else 0.0)
    stop = _WIDTH - _RIGHT - (_SIDE + _APART if unplaced else 0.0)
    on_axis = [*placed, limit] if has_limit and limit is not None else placed
    axis = log_axis(on_axis, start=start, stop=stop)

    bars = _bars(axis, placed) if placed else []
    below = "0 or less" if any(value < 0 for value in floor) else "0"
    if floor:
        bars.append(_Bar(_LEFT, _SIDE, len(floor), f"{below}: {counted(len(floor), 'step')}"))
    if unplaced:
        said = f"not finite: {counted(unplaced, 'step')}"
        bars.append(_Bar(stop + _APART, _SIDE, unplaced, said))
    tallest = max(bar.count for bar in bars)
    bottom = _TOP + _PLOT
    drawn = [_counts(tallest)]
    drawn += [_drawn(bar, tallest) for bar in bars if bar.count]
    drawn.append(line("axis", (_LEFT, bottom), (_WIDTH - _RIGHT, bottom)))
    if placed:
        drawn += [label(x, bottom + 17, tick, "middle") for x, tick in axis.ticks(6)]
    if floor:
        zero = "\N{LESS-THAN OR EQUAL TO} 0" if below != "0" else "0"
        drawn.append(label(_LEFT + _SIDE / 2, bottom + 17, zero, "middle"))
    if unplaced:
        drawn.append(label(stop + _APART + _SIDE / 2, bottom + 17, "!", "middle"))
    if has_limit and limit is not None:
        drawn.append(_limit_line(axis, limit))
    said = _said(placed, len(floor), unplaced, below)
    svg = picture(_WIDTH, bottom + _AXIS, *drawn, title=name, description=said)
    return Histogram(name, svg, said)


def _bars(axis: LogAxis, values: Sequence[float]) -> list[_Bar]:
    decades = axis.high - axis.low
    # Bars in a decade, or decades in a bar.
    fine = max(1, min(8, _MOST_BINS // decades))
    coarse = max(1, math.ceil(decades / _MOST_BINS))
    count = math.ceil(decades * fine / coarse)
    width = (axis.stop - axis.start) * coarse / (decades * fine)
    counts = [0] * count
    for value in values:
        index = math.floor((math.log10(value) - axis.low) * fine / coarse)
        counts[min(max(index, 0), count - 1)] += 1
    edges = [axis.low + i * coarse / fine for i in range(count + 1)]
    return [
        _Bar(
            axis.start + i * width,
            width,
            counts[i],
            f"{_power(edges[i])} to {_power(edges[i + 1])}: {counted(counts[i], 'step')}",
        )
        for i in range(count)
    ]


def _power(exponent: float) -> str:
    """10 ** exponent, which may be more or less than a float holds."""
    whole = math.floor(exponent)
    mantissa = 10 ** (exponent - whole)
    if -4 < whole < 5:
        return number(mantissa * 10.0**whole)
    return f"{mantissa:.2g}e{whole}"


def _counts(tallest: int) -> str:
    step = step_for(tallest, 4)
    drawn = ""
    for count in range(0, tallest + 1, step):
        y = _TOP + _PLOT * (1 - count / tallest)
        drawn += line("grid", (_LEFT, y), (_WIDTH - _RIGHT, y))
        drawn += label(_LEFT - 6, y + 4, str(count), "end muted")
    return drawn


def _drawn(bar: _Bar, tallest: int) -> str:
    height = _PLOT * bar.count / tallest
    gap = min(1.0, bar.width / 5)
    corner = (bar.x + gap / 2, _TOP + _PLOT - height)
    return box("bar", corner, (bar.width - gap, height), bar.said)


def _limit_line(axis: LogAxis, limit: float) -> str:
    x = axis.at(limit)
    is_right = x > _WIDTH * 2 / 3
    said = f"limit {number(limit)}"
    return line("limit", (x, _TOP - 6), (x, _TOP + _PLOT)) + label(
        x - 5 if is_right else x + 5, _TOP - 9, said, "end limit" if is_right else "limit"
    )


def _said(placed: Sequence[float], floor: int, unplaced: int, below: str) -> str:
    parts = [counted(len(placed) + floor + unplaced, "step")]
    if placed and not floor and not unplaced:
        parts.append(f"median {number(statistics.median(placed))}")
    if placed:
        parts.append(f"smallest {number(min(placed))}" if not floor else f"{floor} at {below}")
        parts.append(f"largest {number(max(placed))}")
    elif floor:
        parts.append(f"{floor} at {below}")
    if unplaced:
        parts.append(f"{unplaced} not finite")
    return ", ".join(parts)
