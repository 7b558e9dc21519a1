"""Stores of 16 neighbouring outputs of a row, finished on the way: scaled, and added to a bias."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence

from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.packed_weight import TILE, PackedWeight
from targets.llvm.kernels.silu_mul import silu
from targets.llvm.kernels.vector_math import load, register, splat, store


def store_sums(
    y: Buffer,
    weights: Sequence[PackedWeight],
    m: Expr | int,
    first: Expr,
    *,
    sums: Sequence[Expr],
    factor: Expr | None,
) -> None:
    """Emit y[m, first + i] = sums[i] (* factor * scale) + bias, never past the last output.

    Args:
        y: fp32 [rows, outputs].
        weights: Whose outputs they are; of two, gate and up, y is silu(gate) * up.
        m: Row of y.
        first: The first of 16 outputs.
        sums: fp32 x 16 of each weight.
        factor: The scale of row m of x, where the weights are int8.
    """
    outputs = weights[0].outputs

    def finished(n: Expr, lanes: int, values: Sequence[Expr]) -> Expr:
        found = [
            _scaled(weight, value, n, lanes=lanes, factor=factor)
            for weight, value in zip(weights, values, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        gate, up = found
        return silu(T.Bind(gate), lanes) * up

    def whole() -> None:
        store(y, (m, first), finished(first, TILE, sums), lanes=TILE)

    if outputs % TILE == 0:
        _inside(outputs, first, whole)
        return
    with T.If(first + TILE <= outputs):
        with T.Then():
            whole()
        with T.Else():
            rest = [register(TILE, value=one) for one in sums]
            with T.serial(T.max(outputs - first, 0)) as n:
                value = finished(first + n, 1, [one[n] for one in rest])
                T.buffer_store(y, value, [m, first + n])


def _scaled(weight: PackedWeight, value: Expr, n: Expr, *, lanes: int, factor: Expr | None) -> Expr:
    if weight.scale is not None:
        assert factor is not None, "an int8 weight needs the scale of x"
        value = value * (load(weight.scale, (n,), lanes) * splat(factor, lanes))
    return value if weight.bias is None else value + load(weight.bias, (n,), lanes)


def _inside(outputs: int, first: Expr, emit: Callable[[], None]) -> None:
    """Emit it, where an odd number of tiles leaves the last block half empty only if inside."""
    if outputs % (2 * TILE) == 0:
        emit()
        return
    with T.If(first < outputs), T.Then():
        emit()
