"""Two models on identical tokens: the reference decodes, the candidate answers it.

    reference, prompts -> trajectories; candidate, trajectories -> logits; both -> Comparison

The candidate is always fed the reference's tokens, so that every step answers the same question,
and one pass over it also shows what it would have chosen: a token that differs is replaced by the
reference's, and decoding goes on from there. Whether it is excused: `compiler.comparing.steps`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.comparing.limits import limit_findings
from compiler.comparing.step_findings import step_findings
from compiler.comparing.steps import Step, compare_step
from compiler.config import CompareLimits
from compiler.contracts.comparison import Comparison, Divergence, Finding, TokenStrip
from compiler.contracts.runner import Runner


@dataclass(frozen=True)
class Trajectory:
    """One prompt's greedy decoding by the reference, run now or saved.

    Attributes:
        prompt: Token ids.
        tokens: Generated ids, each the largest logit of its step.
        logits: float32 [len(tokens), vocabulary]; row 0 is after the prompt.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: np.ndarray


def decode_greedily(runner: Runner, prompt: Sequence[int], *, steps: int) -> Trajectory:
    """`steps` tokens, each the largest logit (on a tie the lowest id); fewer at context's end."""
    runner.rewind(0)
    rows = [runner.extend(prompt)]
    tokens = [int(np.argmax(rows[0]))]
    while len(tokens) < steps and runner.length < runner.context:
        rows.append(runner.extend(tokens[-1:]))
        tokens.append(int(np.argmax(rows[-1])))
    return Trajectory(tuple(prompt), tuple(tokens), np.stack(rows))


def decode_forced(runner: Runner, reference: Trajectory) -> Iterator[np.ndarray]:
    """The logits of each step, the reference's tokens being fed; fewer at context's end.

    The runner runs as the rows are taken: take them before it is closed or used again.
    """
    runner.rewind(0)
    yield runner.extend(reference.prompt)
    for token in reference.tokens[:-1]:
        if runner.length == runner.context:
            return
        yield runner.extend([token])


def compare_end_to_end(
    names: tuple[str, str],
    references: Sequence[Trajectory],
    candidates: Iterable[Iterable[np.ndarray]],
    *,
    limits: CompareLimits,
    perplexity: tuple[float, float] | None = None,
) -> Comparison:
    """Everything that the logits say of two models.

    A step that cannot be measured (NaN, another shape) agrees with nothing: its first token counts
    as another, whatever it is, and its five first as five others.

    Args:
        names: The reference's and the candidate's.
        references: One for each prompt.
        candidates: For each prompt the candidate's logits, as `decode_forced` gives them.
        limits: What passes.
        perplexity: Of a text, the reference's and the candidate's.
    """
    bounds: dict[str, float] = limits.model_dump()
    prompts = [
        _compare_prompt(prompt, one, rows, bounds)
        for prompt, (one, rows) in enumerate(zip(references, candidates, strict=True))
    ]
    steps = [step for found in prompts for step in found]
    decided = [step.shown.is_top1_equal for step in steps if not step.shown.is_near_tie]
    equal = sum(step.shown.is_top1_equal for step in steps)
    top1 = _share(sum(decided), len(decided))
    top5 = _share(sum(step.shown.top5_overlap for step in steps), len(steps))
    greedy = _share(equal, sum(len(one.tokens) for one in references))
    return Comparison(
        reference=names[0],
        candidate=names[1],
        level="end-to-end",
        steps=tuple(step.shown for step in steps),
        strips=tuple(
            _strip(f"prompt{prompt}", one, found)
            for prompt, (one, found) in enumerate(zip(references, prompts, strict=True))
        ),
        top1_agreement=top1,
        top5_agreement=top5,
        greedy_agreement=greedy,
        near_ties=sum(step.shown.is_near_tie for step in steps),
        first_divergence=_first_divergence(steps),
        perplexity=perplexity,
        findings=(
            *step_findings(steps, top1=top1, top5=top5, greedy=greedy, limits=bounds),
            *_ends(references, prompts),
            *_perplexity(perplexity, limits),
        ),
        limits=bounds,
    )


def _compare_prompt(
    prompt: int, reference: Trajectory, rows: Iterable[np.ndarray], limits: Mapping[str, float]
) -> list[Step]:
    # A candidate whose context is full gives fewer; `_ends` says so.
    pairs = zip(reference.tokens, reference.logits, rows, strict=False)
    return [
        compare_step((prompt, index), token, wanted, given, limits=limits)
        for index, (token, wanted, given) in enumerate(pairs)
    ]


def _strip(name: str, reference: Trajectory, steps: Sequence[Step]) -> TokenStrip:
    return TokenStrip(
        name=name,
        prompt_tokens=len(reference.prompt),
        reference=reference.tokens,
        candidate=tuple(step.candidate for step in steps),
        near_ties=tuple(step.index for step in steps if step.shown.is_near_tie),
    )


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")


def _first_divergence(steps: Sequence[Step]) -> Divergence | None:
    for step in steps:
        if step.reference != step.candidate and not step.shown.is_near_tie:
            return Divergence(step.prompt, step.index, step.reference, step.candidate)
    return None


def _ends(references: Sequence[Trajectory], prompts: Sequence[Sequence[Step]]) -> Iterator[Finding]:
    """A candidate that gave fewer steps than the reference."""
    for prompt, (one, steps) in enumerate(zip(references, prompts, strict=True)):
        if len(steps) < len(one.tokens):
            yield Finding(
                "missing",
                f"prompt{prompt}/step{len(steps)}/logits",
                f"the candidate ends after {len(steps)} of {len(one.tokens)} steps",
                hint="ask for fewer tokens, or build with a longer context",
            )


def _perplexity(pair: tuple[float, float] | None, limits: CompareLimits) -> tuple[Finding, ...]:
    if pair is None:
        return ()
    reference, candidate = pair
    if not (math.isfinite(reference) and math.isfinite(candidate)):
        kind = "nan" if math.isnan(reference) or math.isnan(candidate) else "infinite"
        return (Finding(kind, "perplexity", f"it is {candidate}, of the reference {reference}"),)
    because = f"from {reference:.6g} to {candidate:.6g}"
    return limit_findings(
        "max_perplexity_increase",
        candidate / reference - 1,
        limits.max_perplexity_increase,
        where="perplexity",
        what="the relative increase of the perplexity",
        because=because,
    )
