"""Which calls one walk over a text makes, and which rows it gives."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from compiler.comparing.text_rows import text_rows
from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner


class Echo(Runner):
    """Answers (its length, the token) and notes what it is asked to read."""

    vocabulary = 50

    def __init__(self, context: int) -> None:
        self.context = context
        self.read: list[tuple[int, ...]] = []

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.check_tokens(tokens)
        self.length += len(tokens)
        return np.array([self.length, tokens[-1]], np.float32)

    def read_rows(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        self.read.append((self.length, *tokens))
        return super().read_rows(tokens)


def walked(runner: Echo, tokens: Sequence[int], context: int) -> list[tuple[int, ...]]:
    return [tuple(row.astype(int)) for row in text_rows(runner, tokens, context=context)]


def test_a_row_for_every_token_but_the_last():
    runner = Echo(8)
    runner.extend([3])
    assert walked(runner, [5, 6, 7], 8) == [(1, 5), (2, 6)]
    assert runner.read == [(0, 5, 6)]


@pytest.mark.parametrize("own", [3, 32])
def test_windows_of_the_context_each_from_an_empty_cache(own: int):
    runner = Echo(own)
    assert walked(runner, [1, 2, 3, 4, 5, 6, 7], 3) == [
        (1, 1),
        (2, 2),
        (3, 3),
        (1, 4),
        (2, 5),
        (3, 6),
    ]
    assert runner.read == [(0, 1, 2, 3), (0, 4, 5, 6)]


def test_two_walk_in_lockstep():
    one, other = Echo(2), Echo(4)
    rows = zip(*(text_rows(each, [1, 2, 3, 4], context=2) for each in (one, other)), strict=True)
    next(rows)
    assert (one.length, other.length) == (1, 1)
    assert sum(1 for _ in rows) == 2
    assert one.read == other.read == [(0, 1, 2), (0, 3)]


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_text_without_a_next_token(tokens: list[int]):
    with pytest.raises(RunError, match=f"the perplexity of {len(tokens)} tokens means nothing"):
        next(text_rows(Echo(4), tokens, context=4))
