"""A linear's weight as `pack-weights` lays it out: blocks of 32 outputs, each one stream of memory.

P[n, k, t, r, c, i] = W[32 n + 16 t + c, depth k + q r + i], zero past the ends, where q elements
are 4 bytes and depth = 16 q: 64 inputs of int8, 32 of bfloat16. A block and a step are two tiles of
AMX, and rows of 64 bytes which for each of 16 outputs hold the q inputs that one instruction
multiplies. Prefill, decode and the embedding read the same bytes.
"""

# TVM annotates its shapes without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.stored_weight import index
from targets.llvm.kernels.vector_math import slice_of

TILE = 16
BLOCK = 2 * TILE
# Elements of the 4 bytes that an instruction takes along the depth.
QUAD = {"int8": 4, "bfloat16": 2}


@dataclass(frozen=True)
class PackedWeight:
    """The weight of a kernel under construction.

    Attributes:
        dtype: int8 or bfloat16.
        rows: int8 or, for bfloat16, uint16 [blocks, steps, 32, 16 q]: a step's rows of 64 bytes.
        outputs: Rows of the matrix.
        scale: fp32 [outputs], of int8.
        bias: fp32 [outputs], or None.
    """

    dtype: str
    rows: Buffer
    outputs: int
    scale: Buffer | None
    bias: Buffer | None

    @property
    def blocks(self) -> int:
        """Blocks of 32 outputs."""
        return -(-self.outputs // BLOCK)

    @property
    def steps(self) -> int:
        """Tiles along the inputs."""
        return int(self.rows.shape[1])

    @property
    def quad(self) -> int:
        """Inputs of one output that lie together."""
        return QUAD[self.dtype]

    def row(self, block: Expr, step: Expr, tile: int, r: Expr | int) -> Expr:
        """64 bytes: `quad` inputs of each of 16 outputs."""
        return self.rows[block, step, tile * TILE + r, slice_of(0, TILE * self.quad)]


@dataclass(frozen=True)
class Result:
    """What is made of one weight, or of two of a shape: silu(gate) * up.

    Attributes:
        weights: One, or gate and up.
        y: fp32 [rows, outputs].
    """

    weights: Sequence[PackedWeight]
    y: Buffer


def each_block(results: Sequence[Result], emit: Callable[[Result, Expr], None]) -> None:
    """Emit a loop on all threads over every result's blocks of outputs."""
    counts = [result.weights[0].blocks for result in results]
    with T.parallel(index(sum(counts))) as task:
        if len(results) == 1:
            emit(results[0], task)
            return
        start = 0
        for result, count in zip(results, counts, strict=True):
            with T.If(tirx.And(task >= start, task < start + count)), T.Then():
                emit(result, T.Bind(task - start))
            start += count


def packed_shape(outputs: int, inputs: int, dtype: str) -> tuple[int, ...]:
    """The shape of [outputs, inputs] when it is packed."""
    quad = QUAD[dtype]
    return (-(-outputs // BLOCK), -(-inputs // (TILE * quad)), 2, TILE, TILE, quad)


@dataclass(frozen=True)
class PackedArguments:
    """Arguments of the function under construction, of which `weight` makes the weight."""

    values: Buffer
    outputs: int
    scale: Buffer | None
    bias: Buffer | None

    def weight(self) -> PackedWeight:
        """Emit a view by rows of 64 bytes; all arguments are declared before it."""
        blocks, steps, _, _, _, quad = self.values.shape
        shape = (blocks, steps, BLOCK, TILE * int(quad))
        dtype = str(self.values.dtype)
        held = "uint16" if dtype == "bfloat16" else dtype
        rows = T.decl_buffer(shape, held, data=self.values.data)
        return PackedWeight(dtype, rows, self.outputs, self.scale, self.bias)


def packed_arguments(
    number: int, outputs: int, inputs: int, *, dtype: str, has_bias: bool
) -> PackedArguments:
    """Declare `weight<number>`, (`scale<number>` of int8,) (`bias<number>`) of the function."""
    blocks, steps, *tile = packed_shape(outputs, inputs, dtype)
    values = T.arg(f"weight{number}", T.buffer((index(blocks), index(steps), *tile), dtype))
    has_scale = dtype == "int8"
    scale = T.arg(f"scale{number}", T.buffer((outputs,), "float32")) if has_scale else None
    bias = T.arg(f"bias{number}", T.buffer((outputs,), "float32")) if has_bias else None
    return PackedArguments(values, outputs, scale, bias)
