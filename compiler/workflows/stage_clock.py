"""Wall time and peak memory of each stage, every process of the build counted."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from compiler.contracts.progress import Progress, StageRecord

_SAMPLE_SECONDS = 0.05


class StageClock:
    """Measures stages and tells a `Progress` of them."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.records: list[StageRecord] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage; recorded when it ends well."""
        self.progress.start(name)
        started = time.perf_counter()
        with _peak_memory() as peak:
            yield
        record = StageRecord(name, time.perf_counter() - started, peak[0])
        self.records.append(record)
        self.progress.finish(record)


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Samples the resident bytes of this process and its descendants; the list has the maximum."""
    peak = [_resident_bytes()]
    stopped = threading.Event()

    def sample() -> None:
        while not stopped.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], _resident_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        stopped.set()
        sampler.join()
        peak[0] = max(peak[0], _resident_bytes())


def _resident_bytes() -> int:
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended between the listing and the look
            continue
    return total
