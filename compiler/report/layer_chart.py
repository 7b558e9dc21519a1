"""Error by layer: what the models differ by at each layer's end, and what the layer itself adds."""

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.contracts.comparison import Comparison, TapComparison
from compiler.report.axes import Bands, LogAxis, bands, is_on_log, log_axis
from compiler.report.svg import (
    box,
    circle,
    cross,
    diamond,
    label,
    line,
    picture,
    pixels,
    shape,
)
from compiler.report.words import badness, number

# Left and right edge of all plots that have layers along them.
LEFT, RIGHT, WIDTH = 72.0, 944.0, 960.0

_LAYER_END = "resid2"
_TOP, _PLOT, _RAIL, _AXIS = 14.0, 240.0, 26.0, 44.0
_CROWDED = 60


@dataclass(frozen=True)
class LayerError:
    """One layer; errors are relative, None where they were not measured.

    Attributes:
        layer: Which.
        accumulated: At the layer's end.
        local: The largest that arises in the layer.
        point: The tap of `local`.
    """

    layer: int
    accumulated: float | None
    local: float | None
    point: str


@dataclass(frozen=True)
class LayerChart:
    """The drawing, and what its legend has to explain.

    Attributes:
        svg: The drawing.
        has_accumulated: There is such a line.
        has_local: Likewise.
        has_limit: Likewise.
        is_any_tap: `local` is the largest of any tap in the layer, not the layer's end alone.
    """

    svg: str
    has_accumulated: bool
    has_local: bool
    has_limit: bool
    is_any_tap: bool


def layer_chart(comparison: Comparison) -> LayerChart | None:
    """The chart of a comparison; None where no layer was measured."""
    errors = layer_errors(comparison)
    accumulated = [(error.layer, error.accumulated) for error in errors]
    local = [(error.layer, error.local) for error in errors]
    values = [value for _, value in (*accumulated, *local) if value is not None]
    if not values:
        return None
    limits = local_limits(comparison)
    columns = bands(errors[-1].layer + 1, left=LEFT, right=RIGHT)
    has_zero = any(value == 0 for value in values)
    has_unplaced = any(not is_on_log(value) and value != 0 for value in values)
    top = _TOP + _RAIL * has_unplaced
    axis = log_axis((*values, *(limit for _, limit in limits)), start=top + _PLOT, stop=top)
    floor = top + _PLOT + _RAIL * has_zero
    rail = top - _RAIL / 2

    drawn = [
        _grid(axis, columns, has_zero=has_zero, has_unplaced=has_unplaced),
        _layers(columns, floor),
        *(_limit_line(axis, columns, index, limit) for index, limit in enumerate(limits)),
        *_series("accumulated", accumulated, axis, columns, (rail, floor)),
        *_series("local", local, axis, columns, (rail, floor)),
        *(_column(error, columns, top=_TOP, bottom=floor) for error in errors),
    ]
    svg = picture(
        max(columns.right, RIGHT) + WIDTH - RIGHT,
        floor + _AXIS,
        *drawn,
        title=f"Error by layer: {comparison.candidate} against {comparison.reference}",
        description=_described(errors),
    )
    return LayerChart(
        svg=svg,
        has_accumulated=any(value is not None for _, value in accumulated),
        has_local=any(value is not None for _, value in local),
        has_limit=any(is_on_log(limit) for _, limit in limits),
        is_any_tap=comparison.level == "tap",
    )


def layer_errors(comparison: Comparison) -> tuple[LayerError, ...]:
    """Every layer that has a tap, in order."""
    layers: dict[int, list[TapComparison]] = {}
    for tap in comparison.taps:
        if tap.layer is not None:
            layers.setdefault(tap.layer, []).append(tap)
    is_any_tap = comparison.level == "tap"
    return tuple(_layer_error(layer, layers[layer], is_any_tap) for layer in sorted(layers))


def local_limits(comparison: Comparison) -> list[tuple[str, float]]:
    """What a tap may be off by itself, where that was asked for: its name and value."""
    return [(name, limit) for name, limit in comparison.limits.items() if name == "max_local"]


def _layer_error(layer: int, taps: Sequence[TapComparison], is_any_tap: bool) -> LayerError:
    ends = [tap for tap in taps if tap.point == _LAYER_END]
    local = [
        (tap.local.max_rel, tap.point)
        for tap in (taps if is_any_tap else ends)
        if tap.local is not None
    ]
    worst, point = max(local, key=lambda one: badness(one[0]), default=(None, ""))
    return LayerError(layer, ends[0].accumulated.max_rel if ends else None, worst, point)


def _grid(axis: LogAxis, columns: Bands, *, has_zero: bool, has_unplaced: bool) -> str:
    across = (columns.left, columns.right)
    drawn = [line("grid faint", (across[0], y), (across[1], y)) for y in axis.minor()]
    for y, said in axis.ticks(8):
        drawn.append(line("grid", (across[0], y), (across[1], y)))
        drawn.append(label(LEFT - 8, y + 4, said, "end"))
    if has_zero:
        y = axis.start + _RAIL
        drawn.append(line("floor", (across[0], y), (across[1], y)))
        drawn.append(label(LEFT - 8, y + 4, "0", "end"))
    if has_unplaced:
        drawn.append(label(LEFT - 8, axis.stop - _RAIL / 2 + 4, "not finite", "end"))
    return "".join(drawn)


def _layers(columns: Bands, floor: float) -> str:
    ticks = "".join(
        label(columns.middle(layer), floor + 18, str(layer), "middle")
        for layer in columns.labelled()
    )
    return ticks + label((columns.left + columns.right) / 2, floor + 36, "layer", "middle muted")


def _limit_line(axis: LogAxis, columns: Bands, index: int, limit: tuple[str, float]) -> str:
    name, value = limit
    if not is_on_log(value):
        return ""
    y = axis.at(value)
    said = f"{name} {number(value)}"
    # Two limits may lie close together: their names go to different ends.
    place = (columns.right - 4, "end limit") if index % 2 == 0 else (columns.left + 4, "limit")
    # The largest above its line, or below it where the plot ends; the others below theirs.
    below = index > 0 or y - axis.stop < 14
    return line("limit", (columns.left, y), (columns.right, y)) + label(
        place[0], y + (14 if below else -5), said, place[1]
    )


def _series(
    kind: str,
    values: Sequence[tuple[int, float | None]],
    axis: LogAxis,
    columns: Bands,
    rails: tuple[float, float],
) -> tuple[str, str, str]:
    """The line, its marks, and crosses for what is not finite."""
    mark = circle if kind == "accumulated" else diamond
    radius = 3.2 if columns.count <= _CROWDED else 2.2
    path, marks, crosses = "", "", ""
    previous = None
    for layer, value in values:
        x = columns.middle(layer)
        if value is None:
            continue
        if is_on_log(value):
            y = axis.at(value)
            path += f"{'L' if previous == layer - 1 else 'M'}{pixels(x)} {pixels(y)}"
            previous = layer
            marks += mark(x, y, radius)
        elif value == 0:
            marks += mark(x, rails[1], radius)
        else:
            crosses += cross(x, rails[0], 4)
    return (
        shape(f"line {kind}", path),
        shape(f"mark {kind}", marks),
        shape(f"cross {kind}", crosses),
    )


def _column(error: LayerError, columns: Bands, *, top: float, bottom: float) -> str:
    """Nothing to see, but the whole column answers to the pointer."""
    corner = (columns.left + error.layer * columns.width, top)
    return box("hover", corner, (columns.width, bottom - top), _said(error))


def _said(error: LayerError) -> str:
    parts = [f"layer {error.layer}"]
    if error.accumulated is not None:
        parts.append(f"accumulated {number(error.accumulated)}")
    if error.local is not None:
        parts.append(f"local {number(error.local)} at {error.point}")
    return "\n".join(parts)


def _described(errors: Sequence[LayerError]) -> str:
    said = f"{len(errors)} layers along the horizontal axis, relative error upwards, in decades."
    ends = [error for error in errors if error.accumulated is not None]
    if ends:
        said += f" Accumulated at the last layer: {number(ends[-1].accumulated or 0.0)}."
    own = [(error.local, error) for error in errors if error.local is not None]
    if own:
        worst, error = max(own, key=lambda one: badness(one[0]))
        said += f" Largest local: {number(worst)}, layer {error.layer}, {error.point}."
    return said
