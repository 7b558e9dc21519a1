"""What `compare` prints: findings first, then figures by prompt, layer and step of the ladder."""

import math
from collections.abc import Iterable, Sequence

from compiler.contracts.comparison import (
    Comparison,
    Finding,
    Ladder,
    Report,
    SemanticCheck,
    StepComparison,
    TapComparison,
)
from compiler.terminal import Terminal


def print_report(report: Report, terminal: Terminal) -> None:
    """Everything that was found, the shortest first."""
    for one in report.comparisons:
        _print_comparison(one, terminal)
    if report.ladder is not None:
        _print_ladder(report.ladder, terminal)
    for target, checks in report.semantic.items():
        _print_checks(target, checks, terminal)


def _print_comparison(one: Comparison, terminal: Terminal) -> None:
    terminal.line(f"{one.candidate} against {one.reference}, {one.level}")
    if one.steps:
        _print_steps(one, terminal)
    if one.taps:
        _print_layers(one.taps, terminal)
    for finding in one.findings:
        _print_finding(finding, terminal)
    if not one.steps and not one.taps:
        terminal.line("nothing was compared")


def _print_finding(finding: Finding, terminal: Terminal) -> None:
    terminal.line(f"{finding.kind}: {finding.where}: {finding.said}")
    if finding.hint:
        terminal.line(f"  hint: {finding.hint}")


def _print_steps(one: Comparison, terminal: Terminal) -> None:
    """A row for each prompt: its worst step."""
    prompts: dict[str, list[StepComparison]] = {}
    for step in one.steps:
        prompts.setdefault(step.name.partition("/")[0], []).append(step)
    rows = [_prompt_row(name, steps) for name, steps in prompts.items()]
    terminal.table(
        ("prompt", "steps", "max abs", "max rel", "cosine", "SNR dB", "KL", "top-1", "near-ties"),
        rows,
    )
    terminal.line(
        f"top-1 agreement {_share(one.top1_agreement)}, top-5 {_share(one.top5_agreement)}, "
        f"greedy {_share(one.greedy_agreement)}; {one.near_ties} near-ties in {len(one.steps)} "
        "steps"
    )
    first = one.first_divergence
    if first is not None:
        terminal.line(
            f"greedy decoding first differs in prompt {first.prompt}, step {first.step}: "
            f"{first.reference} against {first.candidate}"
        )
    if one.perplexity is not None:
        reference, candidate = one.perplexity
        change = candidate / reference - 1
        terminal.line(f"perplexity {candidate:.4f} against {reference:.4f} ({change:+.2%})")


def _prompt_row(name: str, steps: Sequence[StepComparison]) -> tuple[str, ...]:
    measures = [step.measures for step in steps]
    return (
        name,
        str(len(steps)),
        _figure(_largest(one.max_abs for one in measures)),
        _figure(_largest(one.max_rel for one in measures)),
        f"{-_largest(-one.cosine for one in measures):.6f}",
        f"{-_largest(-one.snr_db for one in measures):.1f}",
        _figure(_largest(step.kl for step in steps)),
        f"{sum(step.is_top1_equal for step in steps)}/{len(steps)}",
        str(sum(step.is_near_tie for step in steps)),
    )


def _print_layers(taps: Sequence[TapComparison], terminal: Terminal) -> None:
    """A row for each layer: the largest error that travelled, and the largest of its own."""
    layers: dict[int | None, list[TapComparison]] = {}
    for tap in taps:
        layers.setdefault(tap.layer, []).append(tap)
    rows = []
    for layer, found in layers.items():
        travelled = max(found, key=lambda tap: _size(tap.accumulated.max_rel))
        own = max(found, key=lambda tap: _size(tap.local.max_rel) if tap.local else -1.0)
        local = "" if own.local is None else _figure(own.local.max_rel)
        rows.append(
            (
                "ends" if layer is None else str(layer),
                _figure(travelled.accumulated.max_rel),
                travelled.point,
                local,
                own.point if local else "",
                str(sum(tap.is_recomputed for tap in found) or ""),
                ", ".join(tap.point for tap in found if tap.status != "pass"),
            )
        )
    headers = ("layer", "accumulated", "at", "local", "at", "recomputed", "wrong")
    terminal.table(headers, rows)


def _print_ladder(ladder: Ladder, terminal: Terminal) -> None:
    terminal.line(f"from {ladder.reference}, step by step")
    rows = [
        (
            step.name,
            _figure(step.max_abs),
            _figure(step.rms),
            f"{step.share:+.1%}",
            _figure(step.total_max_abs),
            _figure(step.kl),
        )
        for step in ladder.steps
    ]
    terminal.table(("step", "max abs", "rms", "share", "so far", "KL so far"), rows)
    terminal.line(ladder.said)


def _print_checks(target: str, checks: Sequence[SemanticCheck], terminal: Terminal) -> None:
    terminal.line(f"{target} by itself")
    rows = [(check.name, check.status, _figure(check.max_rel), check.said) for check in checks]
    terminal.table(("check", "status", "max rel", "what"), rows, is_text=True)


def _size(value: float) -> float:
    """What is not a number is larger than any."""
    return math.inf if math.isnan(value) else value


def _largest(values: Iterable[float]) -> float:
    return max(values, key=_size)


def _share(value: float) -> str:
    return "undecided" if math.isnan(value) else f"{value:.1%}"


def _figure(value: float) -> str:
    return f"{value:.3g}"
