"""Figures of stand-ins whose probabilities are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from compiler.contracts.errors import RunError
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.stages.evaluate import evaluate
from compiler.stages.perplexity import perplexity

WIDE = {"max_abs": 100.0, "max_rel": 1.0}
LN2 = math.log(2)


class Scripted(Runner):
    """Gives the rows of a list, one after another, whatever it reads."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        self.vocabulary, self.context = len(rows[0]), 64
        self._rows = [np.array(row, np.float32) for row in rows]
        self._asked = 0

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.length += len(tokens)
        self._asked += 1
        return self._rows[self._asked - 1]


class Steps(Progress):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, str]] = []

    def update(self, done: int, total: int, unit: str) -> None:
        self.seen.append((done, total, unit))


def logs(*shares: float) -> list[float]:
    """Logits, whose sum of exponentials need not be one."""
    return [math.log(share) + 3 if share else -math.inf for share in shares]


HALVES, QUARTERS = logs(1 / 2, 1 / 4, 1 / 4), logs(1 / 4, 1 / 2, 1 / 4)


def evaluated(
    reference: Sequence[Sequence[float]],
    bundle: Sequence[Sequence[float]],
    tokens: Sequence[int],
    *,
    limits: dict[str, float] = WIDE,
    progress: Progress | None = None,
):
    return evaluate(
        Scripted(bundle),
        Scripted(reference),
        tokens,
        context=64,
        name="torch",
        limits=limits,
        progress=progress or Progress(),
    )


def test_the_figures():
    narrow = {"max_abs": 1e-3, "max_rel": 1.0}  # no exchange is excused
    ours, figures = evaluated([HALVES, HALVES], [HALVES, QUARTERS], [0, 1, 0], limits=narrow)
    # The bundle gives 1 its 1/4, then 0 its 1/4; the reference gives 0 its 1/2.
    assert ours == pytest.approx(4.0, rel=1e-6)
    assert figures.perplexity == pytest.approx(math.sqrt(8), rel=1e-6)
    assert figures.perplexity_increase == pytest.approx(math.sqrt(2) - 1, rel=1e-6)
    # 1/2 ln(1/2 : 1/4) + 1/4 ln(1/4 : 1/2)
    assert figures.max_kl == pytest.approx(LN2 / 4, rel=1e-5)
    assert figures.mean_kl == pytest.approx(LN2 / 8, rel=1e-5)
    assert (figures.name, figures.top1_agreement, figures.near_ties) == ("torch", 0.5, 0)


def test_an_exchange_within_the_error_is_a_near_tie():
    _, figures = evaluated([HALVES, HALVES], [HALVES, QUARTERS], [0, 1, 0])
    assert (figures.top1_agreement, figures.near_ties) == (1.0, 1)


def test_an_error_outside_the_limits_excuses_nothing():
    # The margin is ln 2, of logits up to 3 - ln 2: a quarter of a limit of 0.3 is no excuse.
    limits = {"max_abs": 100.0, "max_rel": LN2 / (3 - LN2) / 2}
    _, figures = evaluated([HALVES, HALVES], [HALVES, QUARTERS], [0, 1, 0], limits=limits)
    assert (figures.top1_agreement, figures.near_ties) == (0.5, 0)


def test_equal_models_differ_in_nothing():
    ours, figures = evaluated([HALVES, QUARTERS], [HALVES, QUARTERS], [0, 1, 2])
    assert ours == figures.perplexity
    assert (figures.perplexity_increase, figures.mean_kl, figures.max_kl) == (0, 0, 0)
    assert (figures.top1_agreement, figures.near_ties) == (1.0, 0)


def test_the_perplexity_is_the_one_of_perplexity():
    rows, tokens = [HALVES, QUARTERS, HALVES], [0, 1, 2, 0]
    ours, figures = evaluated([QUARTERS] * 3, rows, tokens)
    assert ours == perplexity(Scripted(rows), tokens, context=64)
    assert figures.perplexity == perplexity(Scripted([QUARTERS] * 3), tokens, context=64)


def test_what_is_no_number_agrees_with_nothing():
    broken = [math.nan, 0.0, 0.0]
    ours, figures = evaluated([HALVES, HALVES], [HALVES, broken], [0, 1, 0])
    assert math.isnan(ours)
    assert all(math.isnan(one) for one in (figures.mean_kl, figures.max_kl))
    assert math.isnan(figures.perplexity_increase)
    assert figures.top1_agreement == 0.5


def test_nan_stays_the_largest_divergence():
    _, figures = evaluated([HALVES, HALVES], [[math.nan] * 3, HALVES], [0, 1, 0])
    assert math.isnan(figures.max_kl)


def test_a_token_that_is_ruled_out():
    ours, figures = evaluated([HALVES], [logs(1 / 2, 0, 1 / 2)], [0, 1])
    assert ours == figures.mean_kl == figures.perplexity_increase == math.inf
    _, figures = evaluated([logs(1 / 2, 0, 1 / 2)], [logs(1 / 2, 0, 1 / 2)], [0, 1])
    assert math.isnan(figures.perplexity_increase)
    assert figures.mean_kl == 0


def test_progress_and_a_text_that_is_too_short():
    steps = Steps()
    evaluated([HALVES, HALVES], [HALVES, HALVES], [0, 1, 2], progress=steps)
    assert steps.seen == [(1, 2, "tokens"), (2, 2, "tokens")]
    with pytest.raises(RunError, match="the perplexity of 1 tokens means nothing"):
        evaluated([HALVES], [HALVES], [0])
