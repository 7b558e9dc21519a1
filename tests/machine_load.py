"""What else runs on this machine, and how fast its memory is: what a speed is judged by."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

# Cores' worth of work by others, above which a measurement is not counted: one rival thread makes a
# run on all cores several times slower, because its barriers spin.
QUIET_CORES = 0.12
_SECONDS_A_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Block:
    """Something measured, and the load of other processes meanwhile, in cores."""

    value: float
    others: float


def others_seconds() -> float:
    """Processor seconds that everybody but this process has used since the machine started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields)
    total = (user + nice + system + irq + softirq + steal) * _SECONDS_A_TICK
    own = os.times()
    return total - own.user - own.system


def measured(work: Callable[[], float]) -> Block:
    """What `work` returns, and the load of others while it ran."""
    began, others = time.perf_counter(), others_seconds()
    value = work()
    elapsed = time.perf_counter() - began
    return Block(value, max(0.0, others_seconds() - others) / elapsed)


def quiet_blocks(work: Callable[[], float], *, wanted: int, limit_seconds: float) -> list[Block]:
    """`wanted` quiet blocks; when the time is up, the quietest that there are."""
    blocks: list[Block] = []
    end = time.monotonic() + limit_seconds
    while sum(block.others < QUIET_CORES for block in blocks) < wanted:
        blocks.append(measured(work))
        if blocks[-1].others >= QUIET_CORES:
            time.sleep(0.2)
        if time.monotonic() > end:
            break
    return sorted(blocks, key=lambda block: block.others)[:wanted]


def bandwidth(threads: int, *, megabytes: int = 512) -> float:
    """Bytes a second that `threads` threads read together: sums of an array, the best of nine."""
    array = np.ones(megabytes * 250_000, np.float32)
    parts = np.array_split(array, threads)

    def once(pool: ThreadPoolExecutor) -> float:
        began = time.perf_counter()
        list(pool.map(np.sum, parts))
        return array.nbytes / (time.perf_counter() - began)

    with ThreadPoolExecutor(threads) as pool:
        return max(once(pool) for _ in range(9))


def wait_for_quiet(limit_seconds: float) -> float:
    """Wait until others leave the machine alone for a second, up to a limit; their load then."""
    blocks = quiet_blocks(_one_second, wanted=1, limit_seconds=limit_seconds)
    return blocks[0].others


def _one_second() -> float:
    time.sleep(1)
    return 0.0
