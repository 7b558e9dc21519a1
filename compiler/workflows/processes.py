"""Heavy stages run in processes of their own, so that torch and TVM give their memory back.

A child starts clean (spawn), ignores Ctrl-C (the parent ends it) and hands back a result or the
CompilerError that it raised.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from compiler.contracts.errors import MachineLacks

Result = TypeVar("Result")


def _start_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_child)
    try:
        yield pool
    except BaseException:
        for process in (pool._processes or {}).values():  # noqa: SLF001 - Python 3.14 names it
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def run_isolated(work: Callable[..., Result], *arguments: object) -> Result:
    """`work(*arguments)` in one child; both must be importable and picklable."""
    return run_parallel(work, [arguments], workers=1)[0]


def run_parallel(
    work: Callable[..., Result], calls: Sequence[tuple[object, ...]], *, workers: int
) -> list[Result]:
    """`work(*call)` for each call, at most `workers` at once; results in the order of the calls.

    Raises:
        CompilerError: What the first call that failed raised.
        MachineLacks: A child was killed, as the kernel does when memory runs out.
    """
    with _pool(min(workers, len(calls))) as pool:
        futures: list[Future[Result]] = [pool.submit(work, *call) for call in calls]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        try:
            for future in done:
                future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise MachineLacks(
                "a worker process died while building",
                hint="the usual cause is memory: free some, or set workspace.workers to 1",
                code="worker-died",
            ) from error
