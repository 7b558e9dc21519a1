"""The product of many rows by AMX: 2 x 2 tiles of sums, four loads for four products.

Runs of rows whose panels fit L2 are laid out for the tiles (`tile_operand`); then each thread takes
blocks of 32 outputs and passes all rows of the run over a block. Weights are read once a run, in
the order in which they lie. Groups past `valid_length` are left as they are.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels import amx
from targets.llvm.kernels.block_output import store_sums
from targets.llvm.kernels.packed_weight import BLOCK, TILE, PackedWeight, Result, each_block
from targets.llvm.kernels.tile_operand import TileOperand
from targets.llvm.kernels.vector_math import prefetch, slice_of, splat, typed

_LEFT, _RIGHT = (4, 5), (6, 7)


def tile_products(operand: TileOperand, results: Sequence[Result], *, valid: Buffer | None) -> None:
    """Emit every result: y = x @ weight.T + bias, or of two weights, silu(gate) * up."""
    rows = int(operand.x.shape[0])
    all_groups = -(-rows // operand.group_rows)
    if valid is None:
        live: Expr | int = all_groups
    else:
        asked = T.cast(valid[0], "int32") + (operand.group_rows - 1)
        live = T.Bind(T.min(T.floordiv(asked, operand.group_rows), all_groups))
    with T.serial(-(-all_groups // operand.groups)) as run:
        first = run * operand.groups
        count = T.Bind(T.max(T.min(live - first, operand.groups), 0))
        with T.parallel(count) as group:
            operand.fill(group, (first + group) * operand.group_rows)
        with T.If(count > 0), T.Then():

            def block(result: Result, number: Expr) -> None:
                amx.configure()
                _block(operand, result, number, first=first, count=count)
                amx.release()

            each_block(results, block)


def _block(operand: TileOperand, result: Result, block: Expr, *, first: Expr, count: Expr) -> None:
    """Emit all rows of a run times one block of outputs."""
    kind = "float32" if result.weights[0].dtype == "bfloat16" else "int32"
    sums = T.alloc_buffer((len(result.weights), 2, 2, TILE, TILE), kind)
    with T.serial(count) as group:
        _ask_for_outputs(operand, result.y, block, (first + group) * operand.group_rows)
        for number, weight in enumerate(result.weights):
            _group_sums(operand, weight, group, block)
            for half in range(2):
                for tile in range(2):
                    amx.store(2 * half + tile, sums, (number, half, tile, 0, 0))
        _store_group(operand, result, sums, group, block=block, first=first)


def _group_sums(operand: TileOperand, weight: PackedWeight, group: Expr, block: Expr) -> None:
    """Emit the sums of a group of rows and a block of outputs, into tiles 0 to 3."""
    # Lines of the next block to ask for in a step, so that all are near when its turn comes.
    ahead = -(-BLOCK // operand.groups)
    for tile in range(4):
        amx.zero(tile)
    with T.serial(operand.steps) as step:
        done = group * operand.steps + step
        for line in range(ahead):
            at = done * ahead + line
            prefetch(weight.rows, (block + 1, at // BLOCK, at % BLOCK, 0))
        for half in range(2):
            amx.load(_LEFT[half], operand.panel, (group, step, half, 0, 0))
            amx.load(_RIGHT[half], weight.rows, (block, step, half * TILE, 0))
        for half in range(2):
            for tile in range(2):
                amx.dot(
                    2 * half + tile,
                    _LEFT[half],
                    _RIGHT[tile],
                    dtypes=(operand.dtypes[half], weight.dtype),
                )


def _ask_for_outputs(operand: TileOperand, y: Buffer, block: Expr, row: Expr) -> None:
    """Emit hints for the lines that a group's sums go to, while they are not there yet."""
    rows, outputs = (int(extent) for extent in y.shape)
    with T.serial(operand.group_rows) as i:
        for tile in range(2):
            at = T.min(block * BLOCK + tile * TILE, outputs - 1)
            prefetch(y, (T.min(row + i, rows - 1), at), is_written=True)


def _store_group(
    operand: TileOperand,
    result: Result,
    sums: Buffer,
    group: Expr,
    *,
    block: Expr,
    first: Expr,
) -> None:
    rows = int(result.y.shape[0])
    is_fixed = operand.form == "fixed"
    for half in range(1 if is_fixed else 2):
        with T.serial(TILE) as i:
            row = T.Bind((first + group) * operand.group_rows + half * TILE + i)

            def store_row(half: int = half, i: Expr = i, row: Expr = row) -> None:
                factor = operand.factor(group, i, row)
                for tile in range(2):
                    totals = [
                        T.Bind(_total(sums, (number, half, tile, i), is_fixed=is_fixed))
                        for number in range(len(result.weights))
                    ]
                    at = block * BLOCK + tile * TILE
                    store_sums(result.y, result.weights, row, at, sums=totals, factor=factor)

            if rows % operand.group_rows == 0:
                store_row()
                continue
            with T.If(row < rows), T.Then():
                store_row()


def _total(sums: Buffer, at: tuple[int, int, int, Expr], *, is_fixed: bool) -> Expr:
    """16 sums of a row in fp32; of fixed point, 256 times those of the high bytes and the low's."""
    number, half, tile, i = at
    wide = typed("float32", TILE)
    if not is_fixed:
        return T.cast(sums[number, half, tile, i, slice_of(0, TILE)], wide)
    high, low = (T.cast(sums[number, part, tile, i, slice_of(0, TILE)], wide) for part in range(2))
    return high * splat(256.0, TILE) + low
