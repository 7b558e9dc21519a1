"""The figures of a comparison, each with where it was seen and the limit that it was held to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from compiler.contracts.comparison import Comparison, StepComparison, TapComparison
from compiler.report.words import badness, cosine, number, perplexity, share


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: What it is.
        value: In words.
        where: The step or tap that it was seen at, or what else there is to it.
        limit: In words; "" where none was asked for.
        verdict: Which side of the limit it is on.
    """

    name: str
    value: str
    where: str = ""
    limit: str = ""
    verdict: Literal["", "within", "outside"] = ""


@dataclass(frozen=True)
class _Extreme:
    """A figure of a step whose worst is shown, and the name of its limit."""

    name: str
    limit: str
    of: Callable[[StepComparison], float]
    said: Callable[[float], str] = number
    is_least_worst: bool = False


_EXTREMES = (
    _Extreme("Largest absolute difference", "max_abs", lambda step: step.measures.max_abs),
    _Extreme("Largest relative difference", "max_rel", lambda step: step.measures.max_rel),
    _Extreme("Least cosine", "min_cosine", lambda step: step.measures.cosine, cosine, True),
    _Extreme(
        "Least signal-to-noise ratio, dB",
        "min_snr_db",
        lambda step: step.measures.snr_db,
        is_least_worst=True,
    ),
    _Extreme("Largest KL divergence, nats", "max_kl", lambda step: step.kl),
)
# Limits that a row of the table stands for.
_SHOWN = {extreme.limit for extreme in _EXTREMES} | {
    "min_top1",
    "min_top5",
    "min_greedy",
    "max_local",
    "max_perplexity_increase",
}


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """All that was measured; nothing of what was not."""
    return (
        *(_agreements(comparison)),
        *(_of_step(comparison, extreme) for extreme in _EXTREMES if comparison.steps),
        *_perplexity(comparison),
        *_of_taps(comparison),
    )


def other_limits(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Limits that no row of the table shows, by name."""
    named = sorted(comparison.limits.items())
    return tuple((name, number(limit)) for name, limit in named if name not in _SHOWN)


def _agreements(comparison: Comparison) -> list[Figure]:
    found: list[Figure] = []
    steps = len(comparison.steps)
    if steps:
        first = sum(step.is_top1_equal for step in comparison.steps)
        said = f"{first} of {steps} steps, near-ties included"
        found += [
            _agreement(
                comparison, "First token (top-1)", comparison.top1_agreement, "min_top1", said
            ),
            _agreement(
                comparison, "First five tokens (top-5)", comparison.top5_agreement, "min_top5"
            ),
        ]
    if comparison.strips:
        name, value = "Greedy tokens", comparison.greedy_agreement
        found.append(_agreement(comparison, name, value, "min_greedy", _divergence(comparison)))
    if steps:
        found.append(Figure("Near-ties", str(comparison.near_ties), f"of {steps} steps"))
    return found


def _agreement(
    comparison: Comparison, name: str, value: float, limit: str, where: str = ""
) -> Figure:
    least = comparison.limits.get(limit)
    if least is None:
        return Figure(name, share(value), where)
    verdict = "within" if value >= least else "outside"
    return Figure(name, share(value), where, f"at least {share(least)}", verdict)


def _divergence(comparison: Comparison) -> str:
    first = comparison.first_divergence
    if first is None:
        return ""
    return (
        f"first apart in prompt {first.prompt}, step {first.step}: "
        f"{first.candidate} for {first.reference}"
    )


def _of_step(comparison: Comparison, extreme: _Extreme) -> Figure:
    sign = -1 if extreme.is_least_worst else 1
    worst = max(comparison.steps, key=lambda step: badness(sign * extreme.of(step)))
    value = extreme.of(worst)
    limit = comparison.limits.get(extreme.limit)
    if limit is None:
        return Figure(extreme.name, extreme.said(value), worst.name)
    is_within = value >= limit if extreme.is_least_worst else value <= limit
    return Figure(
        extreme.name,
        extreme.said(value),
        worst.name,
        f"{'at least' if extreme.is_least_worst else 'at most'} {extreme.said(limit)}",
        "within" if is_within else "outside",
    )


def _perplexity(comparison: Comparison) -> list[Figure]:
    if comparison.perplexity is None:
        return []
    reference, candidate = comparison.perplexity
    where = f"reference {perplexity(reference)}"
    if math.isfinite(reference) and math.isfinite(candidate) and reference > 0:
        where += f", {100 * (candidate / reference - 1):+.3f}%".replace("-", "\N{MINUS SIGN}")
    most = comparison.limits.get("max_perplexity_increase")
    if most is None:
        return [Figure("Perplexity", perplexity(candidate), where)]
    verdict = "within" if candidate <= reference * (1 + most) else "outside"
    limit = f"at most {share(most)} more"
    return [Figure("Perplexity", perplexity(candidate), where, limit, verdict)]


def _of_taps(comparison: Comparison) -> list[Figure]:
    taps = comparison.taps
    if not taps:
        return []
    wrong = sum(tap.status != "pass" for tap in taps)
    recomputed = sum(tap.is_recomputed for tap in taps)
    where = f"{wrong} of them wrong" if wrong else "none of them wrong"
    found = [Figure("Taps", str(len(taps)), f"{where}, {recomputed} recomputed")]
    worst = max(taps, key=lambda tap: badness(tap.accumulated.max_rel))
    name = "Largest accumulated tap error"
    found.append(Figure(name, number(worst.accumulated.max_rel), _place(worst)))
    local = [(tap.local.max_rel, tap) for tap in taps if tap.local is not None]
    if local:
        error, tap = max(local, key=lambda one: badness(one[0]))
        found.append(_of_local(comparison, error, _place(tap)))
    return found


def _of_local(comparison: Comparison, error: float, place: str) -> Figure:
    name, most = "Largest local tap error", comparison.limits.get("max_local")
    if most is None:
        return Figure(name, number(error), place)
    verdict = "within" if error <= most else "outside"
    return Figure(name, number(error), place, f"at most {number(most)}", verdict)


def _place(tap: TapComparison) -> str:
    place = tap.point if tap.layer is None else f"layer {tap.layer}, {tap.point}"
    return f"{place}, in {tap.call}" if tap.call else place
