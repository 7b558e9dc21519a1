"""Stages are timed and weighed, children included."""

import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from compiler.contracts.progress import Progress, StageRecord
from compiler.workflows import stage_clock
from compiler.workflows.stage_clock import StageClock

MEGABYTE = 1_000_000


class Heard(Progress):
    def __init__(self) -> None:
        self.events: list[str | StageRecord] = []

    def start(self, stage: str) -> None:
        self.events.append(stage)

    def finish(self, record: StageRecord) -> None:
        self.events.append(record)


def test_a_stage_is_told_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([10.0, 12.5])
    monkeypatch.setattr(stage_clock.time, "perf_counter", lambda: next(times))
    heard = Heard()
    clock = StageClock(heard)
    with clock.stage("trace"):
        pass
    (record,) = clock.records
    assert (record.name, record.seconds) == ("trace", 2.5)
    assert heard.events == ["trace", record]


def test_a_stage_that_fails_is_not_recorded() -> None:
    heard = Heard()
    clock = StageClock(heard)
    with pytest.raises(KeyError), clock.stage("lower"):
        raise KeyError("x")
    assert clock.records == []
    assert heard.events == ["lower"]


def test_memory_that_was_given_back_counts() -> None:
    size = 200 * MEGABYTE
    clock = StageClock(Progress())
    with clock.stage("package"), mmap.mmap(-1, size) as block:  # an allocator might keep it
        block[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
        stage_clock.time.sleep(4 * stage_clock._SAMPLE_SECONDS)
    with clock.stage("after"):
        pass
    package, after = clock.records
    assert package.peak_rss_bytes - after.peak_rss_bytes > 150 * MEGABYTE


def test_the_memory_of_children_counts() -> None:
    code = "block = b'1' * 200_000_000; print('there', flush=True); input()"
    alone = psutil.Process().memory_info().rss
    clock = StageClock(Progress())
    with (
        clock.stage("lower"),
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "there\n"
        stage_clock.time.sleep(4 * stage_clock._SAMPLE_SECONDS)
        child.stdin.write("\n")
        child.stdin.flush()
    assert clock.records[0].peak_rss_bytes - alone > 190 * MEGABYTE


def test_the_sampler_ends_with_its_stage() -> None:
    before = threading.active_count()
    clock = StageClock(Progress())
    with clock.stage("trace"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
