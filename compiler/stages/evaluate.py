"""bundle, float model, text -> both perplexities, and how far the bundle is from the model.

Both walk over the text in lockstep, so that no more logits are held than one call of each gives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.comparing.measures import (
    compare_tensors,
    divergence,
    is_near_tie,
    log_softmax,
    perplexity_from,
    top2_margin,
)
from compiler.comparing.steps import allowed_error
from compiler.comparing.text_rows import text_rows
from compiler.contracts.evaluation import ReferenceFigures
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner


@dataclass
class _Sums:
    """Over the tokens so far.

    Attributes:
        surprise: Negative log-likelihood of the text by the bundle.
        reference_surprise: By the float model.
        kl: Divergence.
        max_kl: The largest.
        decided: Tokens that are no near-ties.
        agreed: Of these, those after which both put the same token first.
        near_ties: The others.
    """

    surprise: float = 0.0
    reference_surprise: float = 0.0
    kl: float = 0.0
    max_kl: float = 0.0
    decided: int = 0
    agreed: int = 0
    near_ties: int = 0


def evaluate(
    runner: Runner,
    reference: Runner,
    tokens: Sequence[int],
    *,
    context: int,
    name: str,
    limits: Mapping[str, float],
    progress: Progress,
) -> tuple[float, ReferenceFigures]:
    """The perplexity of a text, and what it is held against.

    Args:
        runner: The bundle.
        reference: The float model.
        tokens: The text.
        context: Length of a window, for both.
        name: Of the reference.
        limits: Of `compare`, by their names in the YAML: an error outside them makes no near-tie.
        progress: Told the tokens.

    Raises:
        RunError: Fewer than two tokens.
    """
    sums = _Sums()
    count = len(tokens) - 1
    walks = (text_rows(one, tokens, context=context) for one in (reference, runner))
    for done, (wanted, given, following) in enumerate(zip(*walks, tokens[1:], strict=True), 1):
        _add(sums, wanted, given, following, limits=limits)
        progress.update(done, count, "tokens")
    ours, theirs = (
        perplexity_from(total / count) for total in (sums.surprise, sums.reference_surprise)
    )
    return ours, ReferenceFigures(
        name=name,
        perplexity=theirs,
        perplexity_increase=_increase(theirs, ours),
        mean_kl=sums.kl / count,
        max_kl=sums.max_kl,
        top1_agreement=sums.agreed / sums.decided if sums.decided else math.nan,
        near_ties=sums.near_ties,
    )


def _add(
    sums: _Sums,
    wanted: np.ndarray,
    given: np.ndarray,
    following: int,
    *,
    limits: Mapping[str, float],
) -> None:
    """One token: the logits of the reference and of the bundle, and what came."""
    wanted_logs, given_logs = log_softmax(wanted), log_softmax(given)
    sums.reference_surprise -= float(wanted_logs[following])
    sums.surprise -= float(given_logs[following])
    kl = divergence(wanted_logs, given_logs)
    sums.kl += kl
    sums.max_kl = float(np.maximum(sums.max_kl, kl))  # keeps NaN
    flaw, measures = compare_tensors(wanted, given)
    if flaw is not None:  # what cannot be measured agrees with nothing
        sums.decided += 1
        return
    error = min(measures.max_abs, allowed_error(wanted, limits))
    if is_near_tie(top2_margin(wanted), error):
        sums.near_ties += 1
        return
    sums.decided += 1
    sums.agreed += int(np.argmax(wanted)) == int(np.argmax(given))


def _increase(reference: float, ours: float) -> float:
    """NaN where it is of two infinities."""
    return ours / reference - 1 if math.isfinite(reference) else math.nan
