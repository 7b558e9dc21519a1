"""What is wrong with the steps of a comparison: one finding for each kind, at the worst step."""

import math
from collections.abc import Iterator, Mapping, Sequence

from compiler.comparing.limits import is_within, limit_findings
from compiler.comparing.steps import Step, step_figures
from compiler.contracts.comparison import Finding

# Limits that every step keeps by itself, and what they are of.
_OF_A_STEP: Mapping[str, str] = {
    "max_abs": "the largest difference of a logit",
    "max_rel": "the largest difference of a logit over the reference's largest magnitude",
    "min_cosine": "the cosine of the logits",
    "max_kl": "the divergence of the next token's distribution (KL, nats)",
}


def step_findings(
    steps: Sequence[Step],
    *,
    top1: float,
    top5: float,
    greedy: float,
    limits: Mapping[str, float],
) -> tuple[Finding, ...]:
    """Steps that cannot be measured, then steps outside a limit, then shares below theirs.

    Args:
        steps: Of all prompts.
        top1: `Comparison.top1_agreement`.
        top5: `Comparison.top5_agreement`.
        greedy: `Comparison.greedy_agreement`.
        limits: By their names in the YAML.
    """
    return (
        *_flaws(steps),
        *_outside(steps, limits),
        *_top1(steps, top1, limits),
        *_top5(steps, top5, limits),
        *_greedy(steps, greedy, limits),
    )


def _flaws(steps: Sequence[Step]) -> Iterator[Finding]:
    """One for each thing that makes steps impossible to measure, at the first of them."""
    flawed = [step for step in steps if step.flaw]
    for kind in dict.fromkeys(step.shown.status for step in flawed):
        such = [step for step in flawed if step.shown.status == kind]
        said = f"{such[0].flaw}; in {len(such)} of {len(steps)} steps, first here"
        yield Finding(kind, such[0].shown.name, said)


def _outside(steps: Sequence[Step], limits: Mapping[str, float]) -> Iterator[Finding]:
    """One for each limit of a step, at the step that is the farthest outside."""
    measured = [step.shown for step in steps if not step.flaw]
    for key, what in _OF_A_STEP.items():
        figures = [(step_figures(one.measures, one.kl)[key], one.name) for one in measured]
        outside = [pair for pair in figures if not is_within(key, pair[0], limits[key])]
        if not outside:
            continue
        # NaN before everything, then the farthest; a minimum is missed downwards.
        sign = -1 if key.startswith("min_") else 1
        figure, where = max(outside, key=lambda pair: (math.isnan(pair[0]), sign * pair[0]))
        because = f"{len(outside)} of {len(steps)} steps are outside"
        yield from limit_findings(key, figure, limits[key], where=where, what=what, because=because)


def _top1(steps: Sequence[Step], top1: float, limits: Mapping[str, float]) -> tuple[Finding, ...]:
    missed = [step for step in steps if not step.shown.is_top1_equal and not step.shown.is_near_tie]
    if not missed:
        return ()
    first = missed[0]
    because = first.flaw or (
        f"first here: the candidate chose {first.candidate}, and the reference {first.reference}, "
        f"by {first.shown.margin:.4g}, the logits being off by {first.shown.measures.max_abs:.4g}"
    )
    what = "the share of equal first tokens, near-ties left out,"
    return limit_findings(
        "min_top1", top1, limits["min_top1"], where=first.shown.name, what=what, because=because
    )


def _top5(steps: Sequence[Step], top5: float, limits: Mapping[str, float]) -> tuple[Finding, ...]:
    if not steps:
        return ()
    worst = min(steps, key=lambda step: step.shown.top5_overlap).shown
    because = f"here {worst.top5_overlap:.1f}"
    what = "the mean share of the five first tokens that are the same"
    return limit_findings(
        "min_top5", top5, limits["min_top5"], where=worst.name, what=what, because=because
    )


def _greedy(
    steps: Sequence[Step], greedy: float, limits: Mapping[str, float]
) -> tuple[Finding, ...]:
    missed = [step for step in steps if not step.shown.is_top1_equal]
    if not missed:
        return ()
    near = sum(step.shown.is_near_tie for step in missed)
    because = f"{len(missed)} of {len(steps)} tokens differ, {near} at near-ties; first here"
    what = "the share of equal greedy tokens"
    where = missed[0].shown.name
    return limit_findings(
        "min_greedy", greedy, limits["min_greedy"], where=where, what=what, because=because
    )
