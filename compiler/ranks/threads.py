"""Every rank of a bundle in this process: a thread each, for as long as the runner is open."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from compiler.contracts.errors import CompilerError, TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Observer
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.exchange import Exchange
from compiler.ranks.observing import RankObserver, joined_columns

Result = TypeVar("Result")


class ThreadedRanks(Runner):
    """Ranks in step; their logits are the same, and the first's are given.

    A rank keeps its thread, since a runtime may keep things by thread (TVM its pool of workers).

    Args:
        ways: Number of ranks.
        open_rank: (rank, its collectives) -> its runner; called in the rank's own thread.
        is_repeated: Whether a key head may stand on several ranks.
    """

    def __init__(
        self,
        ways: int,
        open_rank: Callable[[int, Collectives], Runner],
        *,
        is_repeated: bool = False,
    ) -> None:
        self._exchange, self._is_repeated = Exchange(ways), is_repeated
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"rank{rank}") for rank in range(ways)
        ]
        self._runners: list[Runner] = []
        try:
            self._runners = self._together(lambda rank: open_rank(rank, self._exchange.of(rank)))
        except BaseException:
            self.close()
            raise
        first = self._runners[0]
        self.vocabulary, self.context, self.layers = first.vocabulary, first.context, first.layers

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """All ranks read the tokens.

        Raises:
            RunError: As of any runner.
        """
        self.check_tokens(tokens)
        length = self.length

        def extend(rank: int) -> np.ndarray:
            # A call that failed or was interrupted may have left the ranks at different lengths.
            self._runners[rank].rewind(length)
            return self._runners[rank].extend(tokens)

        logits = self._together(extend)
        self.length += len(tokens)
        return logits[0]

    def observe(self, observer: Observer | None) -> None:
        """Show the taps of all ranks together.

        Raises:
            TargetError: A rank's runner shows nothing but logits.
        """

        def observe(rank: int) -> None:
            own = observer
            if observer is not None:
                own = RankObserver(observer, self._exchange, rank, is_repeated=self._is_repeated)
            self._runners[rank].observe(own)

        self._together(observe)

    def cache_rows(self, layer: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The heads of all ranks.

        Raises:
            TargetError: Some stand on several ranks, or a rank's runner does not show its cache.
        """
        if self._is_repeated:
            raise TargetError("ranks that share key heads do not show their caches")
        shares = self._together(lambda rank: self._runners[rank].cache_rows(layer, start, stop))
        keys, values = (joined_columns(one) for one in zip(*shares, strict=True))
        return keys, values

    def close(self) -> None:
        """Let every rank finish or fail, and release it."""
        self._exchange.abandon()
        for thread, runner in zip(self._threads, self._runners, strict=False):
            thread.submit(runner.close)
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=False)

    def _together(self, work: Callable[[int], Result]) -> list[Result]:
        """`work(rank)` on every rank's thread; the first failure that is a rank's own."""

        def guarded(rank: int) -> Result:
            try:
                return work(rank)
            except BaseException:
                self._exchange.abandon()
                raise

        futures: list[Future[Result]] = [
            thread.submit(guarded, rank) for rank, thread in enumerate(self._threads)
        ]
        wait(futures)
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            self._exchange.restore()
            raise next((error for error in errors if not _is_lost(error)), errors[0])
        return [future.result() for future in futures]


def _is_lost(error: BaseException) -> bool:
    """Whether it only says that another rank has failed."""
    return isinstance(error, CompilerError) and error.code == "rank-lost"
