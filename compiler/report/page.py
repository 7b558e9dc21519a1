"""Report -> one HTML file: no script, nothing from elsewhere, equal bytes for equal reports."""

from dataclasses import dataclass
from pathlib import Path

from compiler.atomic_file import partial_file
from compiler.contracts.comparison import (
    Comparison,
    Finding,
    Ladder,
    Report,
    SemanticCheck,
    TapComparison,
)
from compiler.report.figures import Figure, figures, other_limits
from compiler.report.heat_map import HeatMap, heat_map
from compiler.report.histogram import Histogram, histograms
from compiler.report.layer_chart import LayerChart, layer_chart
from compiler.report.strip_chart import StripChart, strip_chart
from compiler.report.verdict import Verdict, comparison_verdict, kind_in_words, verdict
from compiler.report.waterfall import waterfall
from compiler.report.words import cosine, largest, number, share, signed_share

# Beyond these a reader opens the rest by hand.
_FINDINGS_SHOWN = 12


@dataclass(frozen=True)
class _Candidate:
    """One comparison as the page shows it."""

    comparison: Comparison
    verdict: Verdict
    findings: tuple[Finding, ...]
    more_findings: tuple[Finding, ...]
    figures: tuple[Figure, ...]
    other_limits: tuple[tuple[str, str], ...]
    layers: LayerChart | None
    outside: tuple[TapComparison, ...]
    heat: HeatMap | None
    strips: StripChart | None
    spreads: tuple[Histogram, ...]


def write_report(report: Report, path: Path, *, title: str) -> None:
    """Write a report as one HTML file, whole or not at all.

    Args:
        report: What was found.
        path: The file; one that is there is replaced, a link is followed.
        title: The page's title.

    Raises:
        RunError: The file cannot be written there.
    """
    # A lone surrogate, from a file's name that is no UTF-8, must not lose the report.
    page = render(report, title=title).encode("utf-8", "replace")
    with partial_file(path) as partial:
        partial.write_bytes(page)


def render(report: Report, *, title: str) -> str:
    """The page's text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("compiler.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=number, share=share, signed_share=signed_share, cosine=cosine, kind=kind_in_words
    )
    return environment.get_template("page.html").render(
        title=title,
        verdict=verdict(report),
        candidates=[_candidate(comparison) for comparison in report.comparisons],
        largest_difference=_largest_difference,
        ladder=_shown_ladder(report.ladder),
        waterfall=waterfall(report.ladder) if report.ladder else "",
        semantic=_shown_checks(report),
        environment=sorted(report.environment.items()),
    )


def _candidate(comparison: Comparison) -> _Candidate:
    return _Candidate(
        comparison=comparison,
        verdict=comparison_verdict(comparison),
        findings=comparison.findings[:_FINDINGS_SHOWN],
        more_findings=comparison.findings[_FINDINGS_SHOWN:],
        figures=figures(comparison),
        other_limits=other_limits(comparison),
        layers=layer_chart(comparison),
        outside=tuple(tap for tap in comparison.taps if tap.layer is None),
        heat=heat_map(comparison),
        strips=strip_chart(comparison),
        spreads=histograms(comparison),
    )


def _largest_difference(comparison: Comparison) -> float:
    return largest(step.measures.max_abs for step in comparison.steps)


def _shown_ladder(ladder: Ladder | None) -> Ladder | None:
    return ladder if ladder is not None and ladder.steps else None


def _shown_checks(report: Report) -> list[tuple[str, tuple[SemanticCheck, ...]]]:
    return [(target, checks) for target, checks in sorted(report.semantic.items()) if checks]
