"""Layers by taps: where an error arises.

A cell's colour is its error; so is its character, the n of 1e-n, for an eye or a printer that
cannot tell the colours apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compiler.contracts.comparison import Comparison, Measures, TapComparison
from compiler.contracts.taps import LAYER_TAPS
from compiler.report.axes import Bands, bands, is_on_log
from compiler.report.layer_chart import LEFT, RIGHT, WIDTH, local_limits
from compiler.report.svg import box, glyphs, label, picture, pixels, shape
from compiler.report.words import badness, number

SHADES = 8
_TOP, _ROW, _GAP, _AXIS = 4.0, 19.0, 1.0, 44.0
# Half a decade to a shade, or a whole one where that would leave most of them at the bottom.
_HALF_DECADES_UP_TO = 4.0


@dataclass(frozen=True)
class HeatMap:
    """The drawing, and what its legend has to explain.

    Attributes:
        svg: The drawing.
        shades: (class, smallest error) of each shade, the faintest first.
        is_local: Local errors; else accumulated ones, for lack of any local.
        has_zero: Some cells are exactly equal.
        has_unplaced: Some errors are not finite.
        has_large: Some errors are 1 or more.
        has_recomputed: Some cells are marked as recomputed.
        has_failed: Some cells are outside a tolerance.
        said: The worst cell in words.
    """

    svg: str
    shades: tuple[tuple[str, str], ...]
    is_local: bool
    has_zero: bool
    has_unplaced: bool
    has_large: bool
    has_recomputed: bool
    has_failed: bool
    said: str


@dataclass(frozen=True)
class _Cell:
    tap: TapComparison
    error: float
    x: float
    y: float
    kind: str


def heat_map(comparison: Comparison) -> HeatMap | None:
    """The map of a comparison of every tap; None at any other level."""
    taps = [tap for tap in comparison.taps if tap.layer is not None]
    if comparison.level != "tap" or not taps:
        return None
    is_local = any(tap.local is not None for tap in taps)
    shown = [(tap, drawn.max_rel) for tap in taps if (drawn := _drawn(tap, is_local))]
    columns = bands(max(tap.layer or 0 for tap in taps) + 1, left=LEFT, right=RIGHT)
    points = _points(taps)
    # The strongest shades begin at the limit, so that rounding alone looks like rounding alone.
    limits = [limit for _, limit in local_limits(comparison)]
    top, width = _shades([*(error for _, error in shown), *limits])
    cells = [_cell(tap, error, columns, points, top, width) for tap, error in shown]
    bottom = _TOP + len(points) * _ROW
    kind = "Local" if is_local else "Accumulated"
    worst = max(cells, key=lambda cell: badness(cell.error))
    said = f"{number(worst.error)} in layer {worst.tap.layer} at {worst.tap.point}"
    size = (columns.width - _GAP, _ROW - _GAP)
    svg = picture(
        max(columns.right, RIGHT) + WIDTH - RIGHT,
        bottom + _AXIS,
        *(label(LEFT - 8, _TOP + (i + 0.7) * _ROW, name, "end") for i, name in enumerate(points)),
        *(box(cell.kind, (cell.x, cell.y), size, _said(cell)) for cell in cells),
        *_characters(cells, size),
        shape("corner", "".join(_corner(cell, size) for cell in cells if cell.tap.is_recomputed)),
        shape("wrong", "".join(_outline(cell, size) for cell in cells if _is_wrong(cell))),
        _layers(columns, bottom),
        title=f"{kind} error of every tap: {comparison.candidate} against {comparison.reference}",
        description=f"{columns.count} layers by {len(points)} taps. The largest error is {said}.",
    )
    return HeatMap(
        svg=svg,
        shades=tuple((f"h{k}", number(10 ** (top - (SHADES - k) * width))) for k in range(SHADES)),
        is_local=is_local,
        has_zero=any(cell.kind == "hz" for cell in cells),
        has_unplaced=any(cell.kind == "hn" for cell in cells),
        has_large=any(_character(cell.error) == "+" for cell in cells),
        has_recomputed=any(cell.tap.is_recomputed for cell in cells),
        has_failed=any(_is_wrong(cell) for cell in cells),
        said=said,
    )


def _drawn(tap: TapComparison, is_local: bool) -> Measures | None:
    return tap.local if is_local else tap.accumulated


def _points(taps: Sequence[TapComparison]) -> list[str]:
    """Names in the order of computation; ones that the contracts do not know come last."""
    present = dict.fromkeys(tap.point for tap in taps)
    known = [point for point in LAYER_TAPS if point in present]
    return known + [point for point in present if point not in LAYER_TAPS]


def _shades(errors: Sequence[float]) -> tuple[float, float]:
    """(exponent at which the strongest shade ends, decades to a shade)."""
    logs = [math.log10(error) for error in errors if is_on_log(error)]
    if not logs:
        return 0.0, 1.0
    width = 0.5 if max(logs) - min(logs) <= _HALF_DECADES_UP_TO else 1.0
    return (math.floor(max(logs) / width) + 1) * width, width


def _cell(
    tap: TapComparison,
    error: float,
    columns: Bands,
    points: Sequence[str],
    top: float,
    width: float,
) -> _Cell:
    x = columns.left + (tap.layer or 0) * columns.width
    return _Cell(tap, error, x, _TOP + points.index(tap.point) * _ROW, _shade(error, top, width))


def _shade(error: float, top: float, width: float) -> str:
    if error == 0:
        return "hz"
    if not is_on_log(error):
        return "hn"
    index = math.floor((math.log10(error) - top) / width) + SHADES
    return f"h{min(max(index, 0), SHADES - 1)}"


def _characters(cells: Sequence[_Cell], size: tuple[float, float]) -> list[str]:
    kinds = sorted({cell.kind for cell in cells})
    return [
        glyphs(
            f"cell {kind}",
            (
                (cell.x + size[0] / 2, cell.y + size[1] / 2 + 4, _character(cell.error))
                for cell in cells
                if cell.kind == kind
            ),
        )
        for kind in kinds
    ]


def _character(error: float) -> str:
    """The n of 1e-n; `+` from 1 upwards, `0` for nothing at all, `!` for what is not finite."""
    if error == 0:
        return "0"
    if not is_on_log(error):
        return "!"
    power = -math.floor(math.log10(error))
    if power < 1:
        return "+"
    return str(power) if power < 10 else "\N{MIDDLE DOT}"


def _corner(cell: _Cell, size: tuple[float, float]) -> str:
    return f"M{pixels(cell.x + size[0] - 6)} {pixels(cell.y)}h6v6z"


def _outline(cell: _Cell, size: tuple[float, float]) -> str:
    width, height = pixels(size[0] - 2), pixels(size[1] - 2)
    return f"M{pixels(cell.x + 1)} {pixels(cell.y + 1)}h{width}v{height}h-{width}z"


def _is_wrong(cell: _Cell) -> bool:
    return cell.tap.status != "pass"


def _said(cell: _Cell) -> str:
    tap = cell.tap
    lines = [f"layer {tap.layer}, {tap.point}: {tap.status}"]
    if tap.local is not None:
        lines.append(f"local {number(tap.local.max_rel)}, {number(tap.local.snr_db)} dB")
    lines.append(f"accumulated {number(tap.accumulated.max_rel)}")
    lines.append(tap.call)
    if tap.is_recomputed:
        lines.append("recomputed")
    return "\n".join(lines)


def _layers(columns: Bands, bottom: float) -> str:
    ticks = "".join(
        label(columns.middle(layer), bottom + 16, str(layer), "middle")
        for layer in columns.labelled()
    )
    return ticks + label((columns.left + columns.right) / 2, bottom + 34, "layer", "middle muted")
