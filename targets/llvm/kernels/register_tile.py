"""The inner loop that the matrix product and prefill's attention share: an outer-product tile.

acc[m][n] += sum over k of a[m][k] * b[n][k], where a[m][k] is a vector (rows lie in the lanes, so
no sum ever crosses a vector) and b[n][k] is one fp32 number, broadcast to all lanes.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.parallel_loop import limited
from targets.llvm.kernels.vector_math import assign, register, splat, value_of


@dataclass(frozen=True)
class TileShape:
    """`vectors` x `columns` accumulators of `lanes` fp32; both fit the registers with operands."""

    vectors: int
    columns: int
    lanes: int


def tile_shape(features: CpuFeatures) -> TileShape:
    """3 x 8 accumulators with 32 registers, 3 x 4 with 16; a vector and a broadcast fit beside."""
    return TileShape(3, 8 if features.vector_registers == 32 else 4, features.lanes)


def multiply_accumulate(
    accumulators: list[list[Buffer]],
    depth: Expr | int,
    *,
    left: Callable[[int, Expr], Expr],
    right: Callable[[int, Expr], Expr],
    unroll: int = 1,
    meanwhile: Callable[[Expr], None] = lambda _step: None,
) -> None:
    """Emit acc[m][n] += sum over k < depth of left(m, k) * right(n, k).

    Args:
        accumulators: Registers of `lanes` fp32, [vectors][columns].
        depth: Number of products, a multiple of `unroll`.
        left: Vector m at depth k.
        right: Scalar n at depth k.
        unroll: Products in one turn of the loop.
        meanwhile: Emits what else a turn does, such as hints.
    """
    lanes = int(accumulators[0][0].shape[0])
    with T.serial(depth // unroll) as step:
        meanwhile(step)
        for u in range(unroll):
            k = step * unroll + u
            vectors = [T.Bind(left(m, k)) for m in range(len(accumulators))]
            for n in range(len(accumulators[0])):
                factor = T.Bind(splat(right(n, k), lanes))
                for m, vector in enumerate(vectors):
                    accumulator = accumulators[m][n]
                    assign(accumulator, value_of(accumulator) + vector * factor)


def zeros(vectors: int, columns: int, lanes: int) -> list[list[Buffer]]:
    """Emit [vectors][columns] registers holding zero."""
    return [[register(lanes) for _ in range(columns)] for _ in range(vectors)]


@dataclass(frozen=True)
class RowChunks:
    """Groups of `lanes` rows in chunks, whose panels stay in cache while all outputs pass over.

    Attributes:
        groups: Groups of rows.
        tile: Its vectors are the groups of one tile.
        tiles: Whole tiles of one chunk.
        live: Groups with a row that is wanted; the rest are passed by.
    """

    groups: int
    tile: TileShape
    tiles: int
    live: Expr | int

    @property
    def count(self) -> int:
        """Chunks; the last has the groups that fill no tile, too."""
        return -(-max(self.groups // self.tile.vectors, 1) // self.tiles)

    def each_tile(self, chunk: Expr, emit: Callable[[Expr | int, int], None]) -> None:
        """Emit each tile of a chunk: `emit` gets its first group, and how many there are."""
        vectors = self.tile.vectors
        whole = self.groups // vectors
        if whole > 0:
            done = chunk * self.tiles
            wanted = T.min(T.floordiv(self.live + (vectors - 1), vectors), whole)
            with T.serial(T.max(T.min(self.tiles, wanted - done), 0)) as step:
                emit((done + step) * vectors, vectors)
        if self.groups % vectors != 0:
            is_wanted = tirx.And(chunk == self.count - 1, self.live > whole * vectors)
            with T.If(is_wanted), T.Then():
                emit(whole * vectors, self.groups % vectors)


def live_groups(rows: int, lanes: int, valid: Buffer | None) -> Expr | int:
    """Emit how many groups of `lanes` rows have one that is wanted."""
    if valid is None:
        return -(-rows // lanes)
    return T.Bind(T.floordiv(limited(rows, valid) + (lanes - 1), lanes))
