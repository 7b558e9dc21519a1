"""How fast this machine's memory is read, as far as numpy can: a measured floor, not its limit."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Of numpy's reductions these read the most in a second: one instruction a vector, and none of them
# holds the interpreter's lock. Sums of float32, maxima and BLAS's dot read a third less and worse.
_REDUCTIONS: tuple[tuple[type[np.generic], np.ufunc], ...] = (
    (np.uint64, np.bitwise_xor),
    (np.int64, np.add),
    (np.float64, np.add),
)


def read_bandwidth(threads: int, *, megabytes: int = 256) -> Callable[[], float]:
    """A block that measures: bytes a second that threads read together, the best of nine passes.

    Args:
        threads: As many as the work that is held against it has.
        megabytes: Of the array, which must be far larger than any cache.
    """
    array = np.ones(megabytes * 125_000, np.float64)
    views = [(array.view(dtype), function.reduce) for dtype, function in _REDUCTIONS]

    def once(pool: ThreadPoolExecutor) -> float:
        best = 0.0
        for view, reduce in views:
            parts = np.array_split(view, threads)
            began = time.perf_counter()
            list(pool.map(reduce, parts))
            best = max(best, view.nbytes / (time.perf_counter() - began))
        return best

    def block() -> float:
        with ThreadPoolExecutor(threads) as pool:
            return max(once(pool) for _ in range(3))

    return block
