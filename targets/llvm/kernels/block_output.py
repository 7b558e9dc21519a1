"""Stores of 16 neighbouring outputs of a row, finished on the way: scaled, and added to a bias."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable

from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.packed_weight import TILE, PackedWeight
from targets.llvm.kernels.vector_math import load, register, splat, store, value_of


def store_sums(
    y: Buffer, weight: PackedWeight, m: Expr | int, first: Expr, *, sums: Expr, factor: Expr | None
) -> None:
    """Emit y[m, first + i] = sums[i] (* factor * scale) + bias, never past the last output.

    Args:
        y: fp32 [rows, outputs].
        weight: Whose outputs they are.
        m: Row of y.
        first: The first of 16 outputs.
        sums: fp32 x 16.
        factor: The scale of row m of x, where the weight is int8.
    """

    def finished(value: Expr, n: Expr, lanes: int) -> Expr:
        if weight.scale is not None:
            assert factor is not None, "an int8 weight needs the scale of x"
            value = value * (load(weight.scale, (n,), lanes) * splat(factor, lanes))
        return value if weight.bias is None else value + load(weight.bias, (n,), lanes)

    def whole() -> None:
        store(y, (m, first), finished(sums, first, TILE), lanes=TILE)

    if weight.outputs % TILE == 0:
        _inside(weight, first, whole)
        return
    with T.If(first + TILE <= weight.outputs):
        with T.Then():
            whole()
        with T.Else():
            rest = register(TILE, value=sums)
            with T.serial(T.max(weight.outputs - first, 0)) as n:
                T.buffer_store(y, finished(rest[n], first + n, 1), [m, first + n])


def _inside(weight: PackedWeight, first: Expr, emit: Callable[[], None]) -> None:
    """Emit it, where an odd number of tiles leaves the last block half empty only if inside."""
    if weight.outputs % (2 * TILE) == 0:
        emit()
        return
    with T.If(first < weight.outputs), T.Then():
        emit()


__all__ = ["store_sums", "value_of"]
