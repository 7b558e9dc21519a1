"""Greedy decoding on both sides, token by token: one row a prompt, one cell a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from compiler.contracts.comparison import Comparison, TokenStrip
from compiler.report.axes import step_for
from compiler.report.svg import box, glyphs, label, picture
from compiler.report.words import counted, shortened

_LEFT, _RIGHT, _WIDTH = 96.0, 200.0, 960.0
_TOP, _ROW, _GAP = 26.0, 30.0, 2.0
_CELLS = (14.0, 28.0)
_CHARACTERS = {"equal": "=", "near": "~", "different": "\N{NOT EQUAL TO}"}


@dataclass(frozen=True)
class StripChart:
    """The drawing, and the kinds of cells that its legend has to explain."""

    svg: str
    kinds: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Cell:
    kind: str
    x: float
    y: float
    said: str


def strip_chart(comparison: Comparison) -> StripChart | None:
    """The strips of a comparison; None without any token."""
    strips = comparison.strips
    steps = max((_length(strip) for strip in strips), default=0)
    if steps == 0:
        return None
    width = min(max((_WIDTH - _LEFT - _RIGHT) / steps, _CELLS[0]), _CELLS[1])
    size = (width - _GAP, _ROW - 6)
    rows = [_row(strip, index, width) for index, strip in enumerate(strips)]
    cells = [cell for row in rows for cell in row]
    end = _LEFT + steps * width
    equal = sum(cell.kind == "equal" for cell in cells)
    svg = picture(
        end + _RIGHT,
        _TOP + len(strips) * _ROW + 4,
        *_steps(steps, width),
        *(
            _labels(strip, row, i, end)
            for i, strip, row in zip(range(len(rows)), strips, rows, strict=True)
        ),
        *(box(f"s-{cell.kind}", (cell.x, cell.y), size, cell.said) for cell in cells),
        *(_characters(kind, cells, size) for kind in _CHARACTERS),
        title=f"Greedy tokens: {comparison.candidate} against {comparison.reference}",
        description=f"{counted(len(strips), 'prompt')}; {equal} of {len(cells)} tokens are equal.",
    )
    present = {cell.kind for cell in cells}
    kinds = tuple((kind, sign) for kind, sign in _CHARACTERS.items() if kind in present)
    return StripChart(svg, kinds)


def _length(strip: TokenStrip) -> int:
    return max(len(strip.reference), len(strip.candidate))


def _row(strip: TokenStrip, index: int, width: float) -> list[_Cell]:
    y = _TOP + index * _ROW
    pairs = zip_longest(strip.reference, strip.candidate)
    return [
        _Cell(
            _kind(pair, step in strip.near_ties),
            _LEFT + step * width,
            y,
            _said(strip, step, pair),
        )
        for step, pair in enumerate(pairs)
    ]


def _kind(pair: tuple[int | None, int | None], is_near_tie: bool) -> str:
    if is_near_tie:
        return "near"
    return "equal" if pair[0] == pair[1] else "different"


def _said(strip: TokenStrip, step: int, pair: tuple[int | None, int | None]) -> str:
    given = ["none" if token is None else str(token) for token in pair]
    near = "\nnear-tie" if step in strip.near_ties else ""
    return f"{strip.name}, step {step}\nreference {given[0]}\ncandidate {given[1]}{near}"


def _steps(steps: int, width: float) -> list[str]:
    step = step_for(steps, max(2, int(steps * width / 50)))
    return [
        label(_LEFT + (i + 0.5) * width - _GAP / 2, _TOP - 9, str(i), "middle muted")
        for i in range(0, steps, step)
    ] + [label(_LEFT - 12, _TOP - 9, "step", "end muted")]


def _labels(strip: TokenStrip, row: Sequence[_Cell], index: int, end: float) -> str:
    y = _TOP + index * _ROW + 16
    equal = sum(cell.kind == "equal" for cell in row)
    said = f"{equal} of {len(row)} equal, after {counted(strip.prompt_tokens, 'token')}"
    return label(_LEFT - 12, y, shortened(strip.name, 12), "end") + label(
        end + 12, y, said, "muted"
    )


def _characters(kind: str, cells: Sequence[_Cell], size: tuple[float, float]) -> str:
    placed = [
        (cell.x + size[0] / 2, cell.y + size[1] / 2 + 4, _CHARACTERS[kind])
        for cell in cells
        if cell.kind == kind
    ]
    return glyphs(f"cell s-{kind}", placed)
