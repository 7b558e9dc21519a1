"""Every rank of a bundle in this process: a thread each, for as long as the runner is open."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from compiler.contracts.errors import CompilerError
from compiler.contracts.runner import Runner
from compiler.contracts.tensor_parallel import Collectives
from compiler.ranks.exchange import Exchange

Result = TypeVar("Result")


class ThreadedRanks(Runner):
    """Ranks in step; their logits are the same, and the first's are given.

    A rank keeps its thread, since a runtime may keep things by thread (TVM its pool of workers).

    Args:
        ways: Number of ranks.
        open_rank: (rank, its collectives) -> its runner; called in the rank's own thread.
    """

    def __init__(self, ways: int, open_rank: Callable[[int, Collectives], Runner]) -> None:
        self._exchange = Exchange(ways)
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
