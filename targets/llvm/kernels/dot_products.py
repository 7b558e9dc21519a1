"""The product of few rows (decode): each weight row is streamed once, lanes along `inputs`.

A block of outputs shares the vectors of x; a shuffle tree sums the lanes of a block at the end.
With groups, a group's sums are scaled before they join the output's; an int8 weight without them
is scaled once, behind the sum.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.output_tile import added, scaled, store_outputs
from targets.llvm.kernels.stored_weight import StoredWeight, index
from targets.llvm.kernels.vector_math import (
    assign,
    horizontal_sums,
    load,
    prefetch,
    register,
    splat,
    store,
    value_of,
)

# How far ahead of its reads a stream of weights is asked for, in bytes.
AHEAD = 4096
CACHE_LINE = 64


def dot_products(
    x: Buffer, weight: StoredWeight, bias: Buffer | None, y: Buffer, *, features: CpuFeatures
) -> None:
    """Emit y = x @ weight.T + bias for up to four rows of x."""
    rows = int(x.shape[0])
    lanes = weight.width(features.lanes)
    columns = block_columns(rows, lanes=lanes, features=features)
    # One row waits for memory, which likes few streams with a prefetch; more rows share the loads.
    streams = min(2, columns) if rows == 1 else columns
    unroll = _unroll(rows, weight, lanes)
    whole = weight.inputs - weight.inputs % (lanes * unroll)
    finish = added(y, bias, None)
    if weight.scale is not None and not weight.group:
        finish = scaled(weight.scale, finish)
    with T.parallel(index(-(-weight.outputs // columns))) as block:
        first = block * columns
        row_of = [weight.row(first, n, columns) for n in range(columns)]
        sums: list[list[Expr]] = [[] for _ in range(rows)]
        for n in range(0, columns, streams):
            stream = row_of[n : n + streams]
            if weight.group:
                found = _grouped(x, weight, stream, lanes=lanes, unroll=unroll)
            else:
                found = _stream(x, weight, stream, start=0, stop=whole, lanes=lanes, unroll=unroll)
            for m, totals in enumerate(found):
                sums[m] += totals
        for m in range(rows):
            total = horizontal_sums(sums[m], lanes)
            if whole < weight.inputs:
                total = _add_rest(total, x, weight, m=m, row_of=row_of, whole=whole)
            store_outputs(y, m, first, value=total, finish=finish)


def block_columns(rows: int, *, lanes: int, features: CpuFeatures) -> int:
    """Outputs of one block: a power of two whose accumulators fit the registers."""
    columns = min(lanes, max(features.vector_registers // 4 // rows, 2))
    return 1 << (columns.bit_length() - 1)


def _unroll(rows: int, weight: StoredWeight, lanes: int) -> int:
    """Vectors in one turn of the loop: int8 fills a cache line with four of 16 lanes."""
    if rows > 1:
        return 1
    most = 4 if weight.itemsize == 1 else 2
    vectors = (weight.group or most * lanes) // lanes
    return next(unroll for unroll in (most, 2, 1) if vectors % unroll == 0)


def _stream(
    x: Buffer,
    weight: StoredWeight,
    row_of: list[Expr],
    *,
    start: Expr | int,
    stop: int,
    lanes: int,
    unroll: int,
) -> list[list[Expr]]:
    """Emit the products of every row of x with these rows, over `stop` inputs from `start`.

    Returns:
        [rows of x][rows of the weight] vectors whose lanes are not yet summed.
    """
    rows = int(x.shape[0])
    sums = [[[register(lanes) for _ in range(unroll)] for _ in row_of] for _ in range(rows)]
    with T.serial(stop // (lanes * unroll)) as step:
        for u in range(unroll):
            k = start + (step * unroll + u) * lanes
            vectors = [T.Bind(load(x, (m, k), lanes)) for m in range(rows)]
            for n, row in enumerate(row_of):
                if rows == 1 and u * lanes * weight.itemsize % CACHE_LINE == 0:
                    prefetch(weight.values, (row, k + AHEAD // weight.itemsize))
                factor = T.Bind(weight.raw(row, k, lanes))
                for m, vector in enumerate(vectors):
                    assign(sums[m][n][u], value_of(sums[m][n][u]) + vector * factor)
    return [[T.Bind(_total(parts)) for parts in row_sums] for row_sums in sums]


def _grouped(
    x: Buffer, weight: StoredWeight, row_of: list[Expr], *, lanes: int, unroll: int
) -> list[list[Expr]]:
    """Emit the same over all inputs, group by group, each scaled."""
    assert weight.scale is not None
    rows = int(x.shape[0])
    sums = [[register(lanes) for _ in row_of] for _ in range(rows)]
    with T.serial(weight.inputs // weight.group) as group:
        start = group * weight.group
        parts = _stream(
            x, weight, row_of, start=start, stop=weight.group, lanes=lanes, unroll=unroll
        )
        for n, row in enumerate(row_of):
            factor = T.Bind(splat(weight.scale[row, group], lanes))
            for m in range(rows):
                assign(sums[m][n], value_of(sums[m][n]) + parts[m][n] * factor)
    return [[T.Bind(value_of(total)) for total in row_sums] for row_sums in sums]


def _total(parts: list[Buffer]) -> Expr:
    total = value_of(parts[0])
    for other in parts[1:]:
        total = total + value_of(other)
    return total


def _add_rest(
    total: Expr, x: Buffer, weight: StoredWeight, *, m: int, row_of: list[Expr], whole: int
) -> Expr:
    """Emit the products past the last whole vector, one by one."""
    columns = len(row_of)
    rest = T.alloc_buffer((columns,), "float32")
    store(rest, (0,), total, lanes=columns)
    with T.serial(weight.inputs - whole) as k:
        for n, row in enumerate(row_of):
            product = load(x, (m, whole + k), 1) * weight.raw(row, whole + k, 1)
            T.buffer_store(rest, rest[n] + product, [n])
    return T.Bind(load(rest, (0,), columns))
