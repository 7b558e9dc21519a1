"""A row of floats -> int8 codes and a scale: scale = absmax / 127, codes = x / scale, half to even.

A row whose scale would be zero or subnormal has the scale 1 and codes of zero. A row with a NaN or
an infinity has that for its scale, so that nothing made of it is finite; its codes mean nothing.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from compiler.contracts.int8_scales import largest_code
from targets.llvm.kernels.vector_math import (
    assign,
    chunks,
    horizontal_max,
    load,
    register,
    splat,
    store,
    typed,
    value_of,
)

_LARGEST_CODE = float(largest_code(8))
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_MAGNITUDE_BITS = 0x7FFFFFFF


def round_row(
    x: Buffer, at: Sequence[Expr | int], codes: Buffer, to: Sequence[Expr | int], *, lanes: int
) -> Expr:
    """Emit codes[to] = the codes of x[at], rows along the last axis of both; its scale."""
    width = int(x.shape[-1])
    scale = row_scale(x, at, largest=_LARGEST_CODE, lanes=lanes)

    def quantize(k: Expr | int, count: int) -> None:
        code = T.nearbyint(load(x, (*at, k), count) / splat(scale, count))
        store(codes, (*to, k), T.cast(code, typed("int8", count)), lanes=count)

    whole = width - width % lanes
    with T.serial(whole // lanes) as step:
        quantize(step * lanes, lanes)
    for k, count in chunks(width - whole, lanes):
        quantize(whole + k, count)
    return scale


def row_scale(x: Buffer, at: Sequence[Expr | int], *, largest: float, lanes: int) -> Expr:
    """Emit the scale with which the largest magnitude of a row becomes `largest`."""
    raw = T.Bind(_largest_magnitude(x, at, lanes=lanes) / splat(largest, 1))
    return T.Bind(T.Select(raw < splat(_SMALLEST_SCALE, 1), splat(1.0, 1), raw))


def _largest_magnitude(x: Buffer, at: Sequence[Expr | int], *, lanes: int) -> Expr:
    """Emit the largest |x| of a row, by its bits as an integer: a NaN is larger than any number."""
    width = int(x.shape[-1])
    whole = width - width % lanes
    largest = register(lanes, dtype="int32")
    with T.serial(whole // lanes) as step:
        assign(largest, T.max(value_of(largest), _magnitude(x, at, step * lanes, lanes)))
    found = T.Bind(horizontal_max(T.Bind(value_of(largest)), lanes))
    for k, count in chunks(width - whole, lanes):
        rest = T.Bind(_magnitude(x, at, whole + k, count))
        found = T.Bind(T.max(found, horizontal_max(rest, count)))
    return T.Bind(T.reinterpret("float32", found))


def _magnitude(x: Buffer, at: Sequence[Expr | int], k: Expr | int, lanes: int) -> Expr:
    bits = T.reinterpret(typed("int32", lanes), load(x, (*at, k), lanes))
    return bits & splat(tirx.const(_MAGNITUDE_BITS, "int32"), lanes)
