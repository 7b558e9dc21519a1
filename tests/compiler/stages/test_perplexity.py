"""Perplexity of a stand-in whose probabilities are known."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner
from compiler.stages.perplexity import perplexity


class Halves(Runner):
    """Gives the token after the last one 1/2 and the rest what is left, however the cache stands.

    The first token of a window is followed by its successor with 1/4.
    """

    vocabulary = 5

    def __init__(self, context: int = 32) -> None:
        self.context = context
        self.calls: list[tuple[int, ...]] = []

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.calls.append((self.length, *tokens))
        self.length += len(tokens)
        likely = 1 / 4 if self.length == 1 else 1 / 2
        shares = np.full(5, (1 - likely) / 4)
        shares[(tokens[-1] + 1) % 5] = likely
        return (np.log(shares) + 100).astype(np.float32)


def test_the_formula():
    # 0 -> 1 as expected of a first token; 1 -> 2 as expected; 2 -> 4 is one of four others.
    wanted = math.exp(-(math.log(1 / 4) + math.log(1 / 2) + math.log(1 / 8)) / 3)
    assert perplexity(Halves(), [0, 1, 2, 4], context=32) == pytest.approx(wanted, rel=1e-5)
    assert wanted == pytest.approx(4.0)


def test_tokens_are_read_one_at_a_time_from_an_empty_cache():
    runner = Halves()
    runner.extend([3, 3])
    runner.calls.clear()
    perplexity(runner, [0, 1, 2], context=32)
    assert runner.calls == [(0, 0), (1, 1)]


@pytest.mark.parametrize("own", [3, 32])
def test_a_long_text_is_read_in_windows_of_the_context(own: int):
    runner = Halves(context=own)
    tokens = [0, 1, 2, 3, 4, 0, 1]
    # The tokens after the first of each window, 1 and 4, have 1/4; the other four have 1/2.
    wanted = math.exp(-(2 * math.log(1 / 4) + 4 * math.log(1 / 2)) / 6)
    assert perplexity(runner, tokens, context=3) == pytest.approx(wanted, rel=1e-5)
    assert runner.calls == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 0)]


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_text_without_a_next_token(tokens: list[int]):
    with pytest.raises(RunError, match=f"the perplexity of {len(tokens)} tokens means nothing"):
        perplexity(Halves(), tokens, context=32)


@pytest.mark.parametrize(
    ("logit", "wanted"), [(-math.inf, math.inf), (-1000.0, math.inf), (math.nan, math.nan)]
)
def test_what_cannot_come_and_what_is_not_a_number(logit: float, wanted: float):
    class Never(Halves):
        def extend(self, tokens: Sequence[int]) -> np.ndarray:
            super().extend(tokens)
            return np.array([0, logit, 0, 0, 0], np.float32)

    assert perplexity(Never(), [0, 1], context=32) == pytest.approx(wanted, nan_ok=True)
