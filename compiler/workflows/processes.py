"""Heavy stages run in processes of their own, so that torch and TVM give their memory back.

A child starts clean (spawn), ignores Ctrl-C (the parent ends it) and hands back a result or the
CompilerError that it raised. Whatever it and its libraries leave in the temporary folder goes when
it ends, however it ends.
"""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from compiler.contracts.errors import ConfigError, MachineLacks

Result = TypeVar("Result")


@contextmanager
def scratch_in(folder: Path | None) -> Iterator[None]:
    """Temporary files of what happens inside, child processes included, lie in `folder`.

    Args:
        folder: Made where it is missing; None leaves them where the system has them.

    Raises:
        ConfigError: The folder cannot be made.
    """
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder for intermediate files cannot be made: {error}",
            where="workspace.work_dir",
            hint="name a folder that can be written, or leave it out",
        ) from error
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _start_child(scratch: str) -> None:
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="graphlower-") as scratch:
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_child, initargs=(scratch,)
        )
        try:
            yield pool
        except BaseException:
            _end(pool)
            raise
        pool.shutdown(wait=True)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers and what they started (a linker), whatever they are doing."""
    ended: list[psutil.Process] = []
    for worker in list((pool._processes or {}).values()):  # Python 3.14 names it
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(worker.pid)
            process.suspend()  # or it starts another one meanwhile
            ended += [*process.children(recursive=True), process]
    for process in ended:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    pool.shutdown(wait=True, cancel_futures=True)
    psutil.wait_procs(ended)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while children start: they inherit this until they can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        with _interrupts_held():
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
