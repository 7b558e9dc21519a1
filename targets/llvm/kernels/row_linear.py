"""The product of a row (decode): blocks of 32 outputs, lanes along the outputs, at memory's speed.

A weight's stream is read once, in order. bfloat16 is widened by a shift and a mask, two inputs to a
vector, and multiplied by x in fp32. int8 is multiplied by the bytes of x in fixed point, 64 codes
an instruction (`vpdpbusd`): x = scale * (2^16 b2 + 2^8 b1 + b0 - 2^23) with the scale absmax /
(2^23 - 16), as precise as fp32 for a row's largest entries, and with sums that are exact. Codes of
a rounded x are one byte.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from functools import reduce
from operator import add

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.block_output import store_sums
from targets.llvm.kernels.int8_row import row_scale
from targets.llvm.kernels.packed_weight import BLOCK, TILE, PackedWeight, Result, each_block
from targets.llvm.kernels.vector_math import (
    assign,
    each_vector,
    load,
    prefetch,
    register,
    slice_of,
    splat,
    store,
    typed,
    value_of,
)

# How far ahead of its reads a stream of weights is asked for, in bytes.
_AHEAD = 16384
_DOT = "llvm.x86.avx512.vpdpbusd.512"
# So far below 2^23 that no rounding of absmax / scale reaches it, which would leave three bytes.
_LARGEST = float(2**23 - 16)
_OFFSET = 2**23
# Rows of x that share the widening of a weight.
_FEW = 4


def row_products(x: Buffer, given: Buffer | None, results: Sequence[Result]) -> None:
    """Emit every result: y = x @ weight.T + bias, or of two weights, silu(gate) * up.

    Args:
        x: fp32 [rows, inputs], or the int8 codes of one row.
        given: fp32 [1], the scale of codes.
        results: Of weights of one dtype; with int8, x has one row.
    """
    weight = results[0].weights[0]
    row = _FloatRows(x) if weight.dtype == "bfloat16" else _ByteRow(x, given, weight)
    each_block(results, row.block)


class _FloatRows:
    """Rows of fp32 times bfloat16, up to four at a time."""

    def __init__(self, x: Buffer) -> None:
        """Emit a copy of x that ends with a whole step, where x does not."""
        rows, inputs = (int(extent) for extent in x.shape)
        depth = TILE * 2
        padded = -(-inputs // depth) * depth
        self.rows, self.x = rows, x
        if padded == inputs:
            return
        self.x = T.alloc_buffer((rows, padded), "float32")
        with T.serial(rows) as m:
            each_vector(
                inputs,
                TILE,
                lambda k, lanes: store(self.x, (m, k), load(x, (m, k), lanes), lanes=lanes),
            )
            for k in range(inputs, padded):
                T.buffer_store(self.x, tirx.const(0.0, "float32"), [m, k])

    def block(self, result: Result, block: Expr) -> None:
        """Emit one block of outputs of all rows."""
        whole = self.rows - self.rows % _FEW
        if whole:
            with T.serial(whole // _FEW) as group:
                self._few(result, block, [group * _FEW + m for m in range(_FEW)])
        if whole < self.rows:
            self._few(result, block, range(whole, self.rows))

    def _few(self, result: Result, block: Expr, rows: Sequence[Expr | int]) -> None:
        found = [self._sums(weight, block, rows) for weight in result.weights]
        for m, row in enumerate(rows):
            for tile in range(2):
                at = block * BLOCK + tile * TILE
                totals = [sums[m][tile] for sums in found]
                store_sums(result.y, result.weights, row, at, sums=totals, factor=None)

    def _sums(
        self, weight: PackedWeight, block: Expr, rows: Sequence[Expr | int]
    ) -> list[list[Expr]]:
        # With one row, two sums of each output: an addition waits for the one before.
        unroll = 2 if len(rows) == 1 else 1
        sums = [[[register(TILE) for _ in range(unroll)] for _ in range(2)] for _ in rows]
        with T.serial(weight.steps) as step:
            for r in range(TILE):
                k = step * (2 * TILE) + 2 * r
                for tile in range(2):
                    if self.rows == 1:
                        prefetch(weight.rows, (block, step + _AHEAD // 2048, tile * TILE + r, 0))
                    even, odd = _widened(weight.row(block, step, tile, r))
                    for m, row in enumerate(rows):
                        total = sums[m][tile][r % unroll]
                        for at, pair in ((k, even), (k + 1, odd)):
                            factor = splat(self.x[row, at], TILE)
                            assign(total, value_of(total) + pair * factor)
        return [
            [T.Bind(reduce(add, [value_of(part) for part in parts])) for parts in tiles]
            for tiles in sums
        ]


def _widened(pairs: Expr) -> tuple[Expr, Expr]:
    """The lower and the upper bfloat16 of each pair, as fp32."""
    bits = T.Bind(T.reinterpret(typed("uint32", TILE), pairs))
    low = bits << splat(tirx.const(16, "uint32"), TILE)
    high = bits & splat(tirx.const(0xFFFF0000, "uint32"), TILE)
    wide = typed("float32", TILE)
    return T.Bind(T.reinterpret(wide, low)), T.Bind(T.reinterpret(wide, high))


class _ByteRow:
    """A row in bytes times int8."""

    def __init__(self, x: Buffer, given: Buffer | None, weight: PackedWeight) -> None:
        """Emit the bytes of x, the highest first, and find its scale."""
        padded = weight.steps * TILE * weight.quad
        self.count = 1 if given is not None else 3
        self.bytes = T.alloc_buffer((self.count, padded), "uint8")
        inputs = int(x.shape[1])
        if given is not None:
            self.scale = given[0]
            offset = tirx.const(-128, "int8")

            def write(k: Expr | int, lanes: int) -> None:
                codes = x[0, slice_of(k, lanes)] ^ splat(offset, lanes)
                store(self.bytes, (0, k), T.reinterpret(typed("uint8", lanes), codes), lanes=lanes)

            each_vector(inputs, 4 * TILE, write)
            return
        self.scale = row_scale(x, (0,), largest=_LARGEST, lanes=TILE)
        each_vector(inputs, TILE, lambda k, lanes: self._write(x, k, lanes))

    def _write(self, x: Buffer, k: Expr | int, lanes: int) -> None:
        def integers(value: int) -> Expr:
            return splat(tirx.const(value, "int32"), lanes)

        rounded = T.nearbyint(load(x, (0, k), lanes) / splat(self.scale, lanes))
        whole = T.Bind(T.cast(rounded, typed("int32", lanes)) + integers(_OFFSET))
        for part, shift in enumerate((16, 8, 0)):
            byte = (whole >> integers(shift)) & integers(255)
            store(self.bytes, (part, k), T.cast(byte, typed("uint8", lanes)), lanes=lanes)

    def block(self, result: Result, block: Expr) -> None:
        """Emit one block of outputs."""
        found = [self._sums(weight, block) for weight in result.weights]
        for tile in range(2):
            at = block * BLOCK + tile * TILE
            totals = [sums[tile] for sums in found]
            store_sums(result.y, result.weights, 0, at, sums=totals, factor=self.scale)

    def _sums(self, weight: PackedWeight, block: Expr) -> list[Expr]:
        sums = [[register(TILE, dtype="int32") for _ in range(self.count + 1)] for _ in range(2)]
        ones = tirx.Broadcast(tirx.const(1, "uint8"), 4 * TILE)
        with T.serial(weight.steps) as step:
            for r in range(TILE):
                k = (step * TILE + r) * 4
                lefts = [T.Bind(self._repeated(part, k)) for part in range(self.count)]
                for tile in range(2):
                    prefetch(weight.rows, (block, step + _AHEAD // 2048, tile * TILE + r, 0))
                    codes = T.Bind(weight.row(block, step, tile, r))
                    for total, left in zip(sums[tile], (*lefts, ones), strict=True):
                        lanes = typed("int32", TILE)
                        assign(
                            total,
                            T.call_llvm_pure_intrin(
                                _DOT, value_of(total), left, codes, dtype=lanes
                            ),
                        )
        return [T.Bind(self._total([value_of(one) for one in tile])) for tile in sums]

    def _repeated(self, part: int, k: Expr) -> Expr:
        four = T.reinterpret("int32", self.bytes[part, tirx.Ramp(k, 1, 4)])
        return T.reinterpret(typed("uint8", 4 * TILE), tirx.Broadcast(four, TILE))

    def _total(self, sums: list[Expr]) -> Expr:
        """The products' sums in fp32, without what the offset added to the highest byte."""
        highest, *others, codes = sums
        wide = typed("float32", TILE)
        offset = splat(tirx.const(128, "int32"), TILE)
        total = T.cast(highest - codes * offset, wide)
        for part in others:
            total = total * splat(256.0, TILE) + T.cast(part, wide)
        return total
