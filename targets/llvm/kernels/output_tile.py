"""Stores of sums into y [rows, outputs], finished on the way: scaled, and added to a start."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.vector_math import load, part, register, splat, store, transposed

# What is stored for sums: (sums, row of y, first output, lanes) -> that many lanes.
Finish = Callable[[Expr, Expr | int, Expr, int], Expr]


def added(y: Buffer, bias: Buffer | None, is_first: Expr | None) -> Finish:
    """Sums plus the bias, or, where they are not the first of a sum in parts, plus y itself."""

    def finish(sums: Expr, m: Expr | int, n: Expr, lanes: int) -> Expr:
        fresh = splat(0.0, lanes) if bias is None else load(bias, (n,), lanes)
        if is_first is None:
            return sums + fresh
        condition = is_first if lanes == 1 else tirx.Broadcast(is_first, lanes)
        return sums + T.Select(condition, fresh, load(y, (m, n), lanes))

    return finish


def scaled(scale: Buffer, finish: Finish) -> Finish:
    """Each output's sum times its scale, [outputs], and then `finish`."""

    def finish_scaled(sums: Expr, m: Expr | int, n: Expr, lanes: int) -> Expr:
        return finish(sums * load(scale, (n,), lanes), m, n, lanes)

    return finish_scaled


def store_tile(
    y: Buffer, row: Expr | int, first: Expr, *, tile: list[Expr], finish: Finish
) -> None:
    """Emit a [columns, lanes] tile of sums into rows [row, row + lanes) of y."""
    rows, columns = int(y.shape[0]), len(tile)
    lanes = tile[0].ty.dtype.lanes
    vectors = transposed([T.Bind(vector) for vector in tile], lanes)
    for i in range(lanes):
        per_vector = lanes // columns
        offset = i % per_vector * columns
        value = T.Bind(part(vectors[i // per_vector], offset, columns))
        if rows % lanes == 0:
            store_outputs(y, row + i, first, value=value, finish=finish)
            continue
        with T.If(row + i < rows), T.Then():
            store_outputs(y, row + i, first, value=value, finish=finish)


def store_outputs(y: Buffer, m: Expr | int, first: Expr, *, value: Expr, finish: Finish) -> None:
    """Emit y[m, first + n] = what `finish` makes of value[n], never past the last output."""
    outputs, columns = int(y.shape[1]), value.ty.dtype.lanes

    def whole() -> None:
        store(y, (m, first), finish(value, m, first, columns), lanes=columns)

    def ragged() -> None:
        rest = register(columns, value=value)
        with T.serial(outputs % columns) as n:
            T.buffer_store(y, finish(rest[n], m, first + n, 1), [m, first + n])

    if outputs % columns == 0:
        whole()
        return
    if outputs < columns:
        ragged()
        return
    with T.If(first + columns <= outputs):
        with T.Then():
            whole()
        with T.Else():
            ragged()
