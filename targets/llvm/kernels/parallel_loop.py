"""Loops over rows: whether they are worth a launch of the thread pool, and how far they go."""

# TVM annotates its expressions and extents without plain integers.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T
from tvm.tirx.script.builder.frame import ForFrame

# A launch costs several microseconds, in which one thread passes over about this many fp32.
PARALLEL_ELEMENTS = 16384


def parallel_or_serial(extent: int | Expr, *, elements: int) -> ForFrame:
    """A loop over `extent`, on all threads when the work is at least `PARALLEL_ELEMENTS`."""
    is_one = isinstance(extent, int) and extent <= 1
    if not is_one and elements >= PARALLEL_ELEMENTS:
        return T.parallel(extent)
    return T.serial(extent)


def limit_argument(has_limit: bool) -> Buffer | None:
    """Declare `valid_length` [1] int64 of the function under construction, if it has one."""
    return T.arg("valid_length", T.buffer((1,), "int64")) if has_limit else None


def limited(rows: int, valid: Buffer | None) -> int | Expr:
    """Emit how many rows are wanted: all, or the first `valid_length` of them."""
    if valid is None:
        return rows
    wanted = T.min(valid[0], tirx.const(rows, "int64"))
    return T.Bind(T.cast(T.max(wanted, tirx.const(0, "int64")), "int32"))
