"""Which blocks are counted, and what they say."""

from collections.abc import Callable, Sequence

import pytest

from compiler.measuring import Block, Blocks, Wanted, clean_blocks, repeated
from compiler.measuring.blocks import counted

THREE = Wanted(blocks=3, seconds=0.0, attempts=2, pause=0.0)


def with_loads(loads: Sequence[float], *, wanted: Wanted = THREE) -> Blocks[float]:
    """Blocks of the values 1, 2, ... under given loads of others."""
    left = list(enumerate(loads, start=1))

    def measure(work: Callable[[], float]) -> tuple[float, float]:
        value, others = left.pop(0)
        assert work() == 0.0
        return float(value), others

    return clean_blocks(lambda: 0.0, wanted=wanted, measure=measure)


def test_a_quiet_machine_gives_as_many_as_are_wanted() -> None:
    found = with_loads([0.0, 0.11, 0.05, 9.0])
    assert [block.value for block in found.counted] == [1, 2, 3]
    assert (found.median(float), found.others, found.dropped) == (2, 0.11, 0)
    assert found.is_clean


def test_blocks_under_load_are_measured_again() -> None:
    found = with_loads([0.0, 0.5, 0.12, 0.0, 0.0])
    assert [block.value for block in found.counted] == [1, 4, 5]
    assert (found.median(float), found.others, found.dropped) == (4, 0.0, 2)
    assert found.is_clean


def test_the_quietest_are_marked_when_no_attempt_is_left() -> None:
    found = with_loads([0.0, 0.9, 0.3, 0.0, 0.5, 0.4])
    assert sorted(block.value for block in found.counted) == [1, 3, 4]
    assert (found.others, found.dropped, found.is_clean) == (0.3, 3, False)


def test_the_typical_value_is_one_that_was_measured() -> None:
    blocks = counted(
        [Block("bb", 0.0), Block("a", 0.0), Block("dddd", 0.0), Block("ccc", 0.0)], wanted=4
    )
    assert blocks.typical(len) == "bb"
    assert blocks.median(len) == 2.5


def test_a_block_calls_once_at_least_and_gives_the_median() -> None:
    assert repeated(lambda: 7.0, seconds=0.0)() == 7.0
    calls = iter([5.0, *[1.0] * 10_000_000])
    assert repeated(lambda: next(calls), seconds=0.01)() == 1.0


def test_nothing_measured_is_no_figure() -> None:
    with pytest.raises(AssertionError):
        counted([], wanted=1)
