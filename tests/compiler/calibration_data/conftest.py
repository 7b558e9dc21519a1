"""Fixtures of the tests on calibration data."""

import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import pytest

Result = TypeVar("Result")


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], Result]], tuple[int, Result]]:
    """`peak_bytes(work)`: the most that Python held during it, and what it returned."""

    def measure(work: Callable[[], Result]) -> tuple[int, Result]:
        tracemalloc.start()
        try:
            result = work()
            return tracemalloc.get_traced_memory()[1], result
        finally:
            tracemalloc.stop()

    return measure
