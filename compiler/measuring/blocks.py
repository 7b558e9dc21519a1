"""Blocks of work with the load of others beside them: which are counted, and what they say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Generic, TypeVar

from compiler.measuring.machine import QUIET_CORES, measured

Value = TypeVar("Value")


@dataclass(frozen=True)
class Block(Generic[Value]):
    """Something measured, and the load of other processes meanwhile, in cores."""

    value: Value
    others: float

    @property
    def is_clean(self) -> bool:
        """Whether others left the machine alone."""
        return self.others < QUIET_CORES


@dataclass(frozen=True)
class Wanted:
    """How much is measured.

    Attributes:
        blocks: Clean blocks that a figure is the median of.
        seconds: Least length of a block: the machine counts its load in ticks of 10 ms.
        attempts: Blocks that are tried for each that is wanted.
        pause: Seconds after a block under load.
    """

    blocks: int = 5
    seconds: float = 0.3
    attempts: int = 4
    pause: float = 0.2


@dataclass(frozen=True)
class Blocks(Generic[Value]):
    """The blocks that are counted.

    Attributes:
        counted: As many as were wanted: clean ones, or the quietest where there are too few.
        dropped: How many others were measured.
        is_clean: Whether all that are counted are clean.
    """

    counted: tuple[Block[Value], ...]
    dropped: int
    is_clean: bool

    @property
    def others(self) -> float:
        """The highest load under which a counted block was measured."""
        return max(block.others for block in self.counted)

    def median(self, size: Callable[[Value], float]) -> float:
        """Of the counted blocks' sizes."""
        return median(size(block.value) for block in self.counted)

    def typical(self, size: Callable[[Value], float]) -> Value:
        """The value of median size itself, the lower where there are two."""
        values = [block.value for block in self.counted]
        middle = median_low(map(size, values))
        return next(value for value in values if size(value) == middle)


def counted(measured_blocks: Sequence[Block[Value]], *, wanted: int) -> Blocks[Value]:
    """Clean blocks in their order; too few of them: the quietest of all."""
    assert measured_blocks, "nothing was measured"
    clean = [block for block in measured_blocks if block.is_clean]
    is_clean = len(clean) >= wanted
    chosen = clean if is_clean else sorted(measured_blocks, key=lambda block: block.others)
    kept = tuple(chosen[:wanted])
    return Blocks(kept, dropped=len(measured_blocks) - len(kept), is_clean=is_clean)


def clean_blocks(
    work: Callable[[], Value],
    *,
    wanted: Wanted,
    measure: Callable[[Callable[[], Value]], tuple[Value, float]] = measured,
) -> Blocks[Value]:
    """Run `work` until there are enough clean blocks, or no attempt is left.

    Args:
        work: One block.
        wanted: How many.
        measure: Runs a block, and says how busy others were.
    """
    blocks: list[Block[Value]] = []
    for _ in range(wanted.blocks * wanted.attempts):
        blocks.append(Block(*measure(work)))
        if sum(block.is_clean for block in blocks) >= wanted.blocks:
            break
        if not blocks[-1].is_clean:
            time.sleep(wanted.pause)
    return counted(blocks, wanted=wanted.blocks)


def repeated(call: Callable[[], float], *, seconds: float) -> Callable[[], float]:
    """A block: `call` again and again for so long, once at least; the median of what it returns."""

    def block() -> float:
        values: list[float] = []
        end = time.perf_counter() + seconds
        while not values or time.perf_counter() < end:
            values.append(call())
        return median(values)

    return block
