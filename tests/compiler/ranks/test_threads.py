"""Ranks as threads: what they exchange, and what becomes of a failure."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.exchange import Exchange
from compiler.ranks.threads import ThreadedRanks

WAYS = 3


def together(work: Callable[[Collectives], np.ndarray]) -> list[np.ndarray]:
    exchange = Exchange(WAYS)
    with ThreadPoolExecutor(WAYS) as pool:
        return list(pool.map(work, [exchange.of(rank) for rank in range(WAYS)]))


def test_the_sum_is_taken_in_the_order_of_the_ranks():
    terms = np.array([1e8, 1.0, -1e8], np.float32)
    found = together(lambda line: line.all_reduce(terms[line.rank : line.rank + 1]))
    assert [float(one[0]) for one in found] == [float((terms[0] + terms[1]) + terms[2])] * WAYS


def test_half_precision_is_rounded_once():
    terms = np.array([2048.0, 1.0, 1.0], np.float16)
    found = together(lambda line: line.all_reduce(terms[line.rank : line.rank + 1]))
    assert [(one.dtype.name, float(one[0])) for one in found] == [("float16", 2050.0)] * WAYS


def test_parts_are_joined_along_the_last_axis():
    found = together(lambda line: line.all_gather(np.full((1, 2, 2), line.rank)))
    assert found[0].tolist() == [[[0, 0, 1, 1, 2, 2]] * 2]
    assert all(one.tolist() == found[0].tolist() for one in found)


def test_steps_do_not_mix():
    def many(line: Collectives) -> np.ndarray:
        for step in range(200):
            assert line.all_reduce(np.array([float(step)]))[0] == WAYS * step
        return np.empty(0)

    together(many)


class Counting(Runner):
    """Logits are the sum over the ranks of what was read; token 7 fails on rank 1."""

    def __init__(self, rank: int, line: Collectives) -> None:
        self.vocabulary, self.context, self.layers = 9, 16, 1
        self._rank, self._line, self._thread = rank, line, threading.get_ident()
        self.is_closed = False

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        assert threading.get_ident() == self._thread
        if 7 in tokens and self._rank == 1:
            raise ValueError("a seven")
        self.length += len(tokens)
        return self._line.all_reduce(np.full(9, float(self.length)))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def ranks():
    opened: list[Counting] = []

    def open_rank(rank: int, line: Collectives) -> Counting:
        opened.append(Counting(rank, line))
        return opened[-1]

    runner = ThreadedRanks(WAYS, open_rank)
    yield runner
    runner.close()
    assert all(one.is_closed for one in opened)


def test_each_rank_keeps_its_thread(ranks: ThreadedRanks):
    assert [ranks.extend([1])[0], ranks.extend([1, 2])[0]] == [3.0, 9.0]
    assert (ranks.vocabulary, ranks.context, ranks.length) == (9, 16, 3)
    ranks.rewind(1)
    assert ranks.extend([1])[0] == 6.0


def test_the_rank_that_failed_is_heard_and_the_others_go_on(ranks: ThreadedRanks):
    ranks.extend([1])
    with pytest.raises(ValueError, match="a seven"):
        ranks.extend([7])
    assert ranks.length == 1
    # The others had read the token that failed; they begin again behind what all have read.
    assert ranks.extend([2])[0] == 6.0


def test_what_is_refused_reaches_no_rank(ranks: ThreadedRanks):
    with pytest.raises(RunError, match="token id 9"):
        ranks.extend([9])
    assert ranks.extend([1])[0] == 3.0


def test_a_rank_that_cannot_be_opened_ends_the_others():
    def open_rank(rank: int, line: Collectives) -> Runner:
        if rank == 2:
            raise RunError("no such file")
        line.all_reduce(np.ones(1))
        return Counting(rank, line)

    with pytest.raises(RunError, match="no such file"):
        ThreadedRanks(WAYS, open_rank)
