"""Attention's weights as vectors: 2^x of scores, and their bits in bfloat16, two at a time."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.vector_math import part, slice_of, splat, store, value_of

_LANES = 16
# 2 as a bfloat16: of positive numbers below 4, those of 2 and more have this bit.
_TWO = 0x4000
# 2^x on [0, 1), relative error 2.7e-6: minimax by Remez's algorithm.
_POLYNOMIAL = (0.0135341678, 0.0520114601, 0.241442755, 0.693003833, 1.00000262)


def is_any_at_least_two(words: Buffer) -> Expr:
    """Whether any of the weights whose bits were joined is 2 or more."""
    bits = T.Bind(T.reinterpret(f"int32x{_LANES}", value_of(words)))
    largest = _disjunction(bits & splat_integer(_TWO << 16 | _TWO, _LANES, "int32"))
    return tirx.NE(largest, 0)


def _disjunction(vector: Expr) -> Expr:
    """Emit all lanes joined by or."""
    width = _LANES
    while width > 1:
        width //= 2
        vector = T.Bind(part(vector, 0, width) | part(vector, width, width))
    return vector


def power_of_two(x: Expr) -> Expr:
    """Emit 2^x of a bound vector, -inf included: `vreduceps` leaves x - floor(x)."""
    floor, current_rounding = (tirx.const(flag, "int32") for flag in (0x09, 0x04))
    zeros, every = splat(0.0, _LANES), tirx.const(-1, "int16")
    name = "llvm.x86.avx512.mask.{}.ps.512"
    dtype = f"float32x{_LANES}"
    fraction = T.Bind(
        T.call_llvm_pure_intrin(
            name.format("reduce"), x, floor, zeros, every, current_rounding, dtype=dtype
        )
    )
    series = splat(_POLYNOMIAL[0], _LANES)
    for coefficient in _POLYNOMIAL[1:]:
        series = series * fraction + splat(coefficient, _LANES)
    return T.Bind(
        T.call_llvm_pure_intrin(
            name.format("scalef"), series, x, zeros, every, current_rounding, dtype=dtype
        )
    )


def rounded_pair(low: Expr, high: Expr) -> Expr:
    """Emit two vectors of fp32 as one of bfloat16's bits, to nearest and ties away from zero."""
    half = splat_integer(0x8000, _LANES, "uint32")
    words = [
        T.Bind(T.reinterpret("uint16x32", T.reinterpret(f"uint32x{_LANES}", vector) + half))
        for vector in (low, high)
    ]
    return tirx.Shuffle(words, [tirx.const(2 * lane + 1, "int32") for lane in range(32)])


def bfloat16_words(cache: Buffer, at: Sequence[Expr | int], dtype: str) -> Expr:
    """The bits of 32 neighbouring bfloat16, as they are or as 16 pairs."""
    value = T.reinterpret("uint16x32", cache[(*at[:-1], slice_of(at[-1], 32))])
    return value if dtype == "uint16" else T.reinterpret(f"uint32x{_LANES}", value)


def store_words(buffer: Buffer, at: Sequence[Expr | int], words: Expr) -> None:
    """Emit a store of 32 bfloat16 by their bits."""
    store(buffer, at, words, lanes=32)


def splat_integer(value: int, lanes: int, dtype: str) -> Expr:
    """A vector with an integer in every lane."""
    return tirx.Broadcast(tirx.const(value, dtype), lanes)
