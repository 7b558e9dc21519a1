"""Ranks under observation: one observer sees all of them as one model."""

from collections.abc import Sequence

import numpy as np
import pytest

from compiler.contracts.errors import TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer, Tap
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.threads import ThreadedRanks

WAYS = 3
EMBED, GATE, KEYS = Tap(None, "embed"), Tap(0, "gate"), Tap(0, "keys")


class Showing(Runner):
    """Shows what is whole and what is divided; its logits are what it goes on with, summed."""

    def __init__(self, rank: int, line: Collectives) -> None:
        self.vocabulary, self.context, self.layers = 9, 16, 1
        self._rank, self._line = rank, line
        self._observer: Observer | None = None

    def observe(self, observer: Observer | None) -> None:
        self._observer = observer

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        self.length += len(tokens)
        own = np.full((len(tokens), 2), self._rank, np.float32)
        whole = self._see(EMBED, np.ones((len(tokens), 2), np.float32))
        gate, keys = self._see(GATE, own), self._see(KEYS, own + 10)
        return self._line.all_gather(np.array([whole.sum(), gate.sum(), keys.sum()]))

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.full((stop - start, 1), self._rank, np.float32)
        return rows, rows + 10 * layer

    def _see(self, tap: Tap, rows: np.ndarray) -> np.ndarray:
        if self._observer is None or tap.point not in self._observer.points:
            return rows
        given = self._observer.see(tap, rows)
        return rows if given is None else given


class Recording(Observer):
    """Keeps what it sees; puts `given` in the place of a tap."""

    def __init__(self, given: dict[Tap, np.ndarray] | None = None) -> None:
        self.seen: dict[Tap, np.ndarray] = {}
        self._given = given or {}

    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        assert tap not in self.seen, f"{tap} is shown twice"
        self.seen[tap] = rows.copy()
        return self._given.get(tap)


class Failing(Observer):
    def see(self, tap: Tap, rows: np.ndarray) -> np.ndarray | None:
        raise ValueError(f"not {tap}")


def opened(*, is_repeated: bool = False) -> ThreadedRanks:
    return ThreadedRanks(WAYS, Showing, is_repeated=is_repeated)


def test_shares_are_seen_side_by_side_and_what_is_whole_once():
    ranks, observer = opened(), Recording()
    plain = ranks.extend([1, 2])
    ranks.rewind(0)
    ranks.observe(observer)
    np.testing.assert_array_equal(ranks.extend([1, 2]), plain)
    assert observer.seen[EMBED].tolist() == [[1, 1], [1, 1]]
    assert observer.seen[GATE].tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert observer.seen[KEYS].tolist() == [[10, 10, 11, 11, 12, 12]] * 2
    ranks.observe(None)
    ranks.extend([3])
    assert len(observer.seen) == 3
    ranks.close()


def test_every_rank_goes_on_with_its_share_of_what_is_given():
    given = {EMBED: np.full((1, 2), 5.0), GATE: np.arange(6.0).reshape(1, 6)}
    ranks = opened()
    ranks.observe(Recording(given))
    # (whole, gate, keys) of each rank.
    assert ranks.extend([1]).tolist() == [10, 1, 20, 10, 5, 22, 10, 9, 24]
    ranks.close()


def test_what_an_observer_raises_ends_all_ranks_and_the_next_call_runs():
    ranks = opened()
    ranks.observe(Failing())
    with pytest.raises(ValueError, match="not embed"):
        ranks.extend([1])
    ranks.observe(None)
    assert ranks.extend([1]).shape == (9,)
    ranks.close()


def test_caches_are_joined():
    ranks = opened()
    keys, values = ranks.cache_rows(1, 2, 4)
    assert (keys.tolist(), values.tolist()) == ([[0, 1, 2]] * 2, [[10, 11, 12]] * 2)
    ranks.close()


def test_key_heads_that_several_ranks_hold_are_not_shown():
    ranks, observer = opened(is_repeated=True), Recording()
    ranks.observe(observer)
    ranks.extend([1])
    assert set(observer.seen) == {EMBED, GATE}
    with pytest.raises(TargetError, match="ranks that share key heads do not show their caches"):
        ranks.cache_rows(0, 0, 1)
    ranks.close()
