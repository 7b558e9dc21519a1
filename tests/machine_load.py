"""What else runs on this machine, and how fast its memory is: what a speed is judged by."""

import time
from collections.abc import Callable

from compiler.measuring import QUIET_CORES, Block, measured, read_bandwidth


def quiet_blocks(
    work: Callable[[], float], *, wanted: int, limit_seconds: float
) -> list[Block[float]]:
    """`wanted` quiet blocks; when the time is up, the quietest that there are."""
    blocks: list[Block[float]] = []
    end = time.monotonic() + limit_seconds
    while sum(block.others < QUIET_CORES for block in blocks) < wanted:
        blocks.append(Block(*measured(work)))
        if blocks[-1].others >= QUIET_CORES:
            time.sleep(0.2)
        if time.monotonic() > end:
            break
    return sorted(blocks, key=lambda block: block.others)[:wanted]


def bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together."""
    return read_bandwidth(threads)()


def wait_for_quiet(limit_seconds: float) -> float:
    """Wait until others leave the machine alone for a second, up to a limit; their load then."""
    blocks = quiet_blocks(_one_second, wanted=1, limit_seconds=limit_seconds)
    return blocks[0].others


def _one_second() -> float:
    time.sleep(1)
    return 0.0
