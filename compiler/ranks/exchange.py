"""Collectives between threads: each puts down what it has, and takes what all have put down."""

import threading
from dataclasses import dataclass

import numpy as np

from compiler.contracts.errors import RunError
from compiler.ranks.arithmetic import joined, total


class Exchange:
    """One table for all ranks of a process.

    Args:
        ways: Number of ranks.
    """

    def __init__(self, ways: int) -> None:
        self.ways = ways
        self._table: list[np.ndarray] = [np.empty(0)] * ways
        self._all_there = threading.Barrier(ways)

    def of(self, rank: int) -> "ThreadCollectives":
        """A rank's side of it."""
        return ThreadCollectives(self, rank, self.ways)

    def abandon(self) -> None:
        """Wake whoever waits, and let nobody wait: a rank has failed."""
        self._all_there.abort()

    def restore(self) -> None:
        """Begin anew, once no rank is in a step."""
        self._all_there.reset()

    def swap(self, rank: int, array: np.ndarray) -> list[np.ndarray]:
        """Copies of what all ranks gave in this step."""
        self._table[rank] = array
        self._meet()
        arrays = [one.copy() for one in self._table]
        self._meet()  # or one would put down its next while another still reads
        return arrays

    def _meet(self) -> None:
        try:
            self._all_there.wait()
        except threading.BrokenBarrierError as error:
            raise RunError("another rank has failed", code="rank-lost") from error


@dataclass(frozen=True)
class ThreadCollectives:
    """The `Collectives` of one thread."""

    exchange: Exchange
    rank: int
    ways: int

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        """The sum over the ranks."""
        return total(self.exchange.swap(self.rank, array))

    def all_gather(self, array: np.ndarray) -> np.ndarray:
        """The ranks' arrays side by side."""
        return joined(self.exchange.swap(self.rank, array))

    def close(self) -> None:
        """Nothing to leave."""
