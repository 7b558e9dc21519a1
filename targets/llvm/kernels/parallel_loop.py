"""Whether a loop is worth a launch of the thread pool."""

# TVM annotates a loop's extent without plain integers.
# pyright: reportArgumentType=false

from tvm.tirx.script.builder import ir as T
from tvm.tirx.script.builder.frame import ForFrame

# A launch costs several microseconds, in which one thread passes over about this many fp32.
PARALLEL_ELEMENTS = 16384


def parallel_or_serial(extent: int, *, elements: int) -> ForFrame:
    """A loop over `extent`, on all threads when the work is at least `PARALLEL_ELEMENTS`."""
    if extent > 1 and elements >= PARALLEL_ELEMENTS:
        return T.parallel(extent)
    return T.serial(extent)
