"""The product of many rows by AMX: 2 x 2 tiles of sums, four loads for four products.

Runs of rows whose panels fit L2 are laid out for the tiles (`tile_operand`); then each thread takes
blocks of 32 outputs and passes all rows of the run over a block. Weights are read once a run, in
the order in which they lie. Rows past `valid_length` are left as they are, up to the end of a group.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels import amx
from targets.llvm.kernels.block_output import store_sums
from targets.llvm.kernels.packed_weight import BLOCK, TILE, PackedWeight
from targets.llvm.kernels.stored_weight import index
from targets.llvm.kernels.tile_operand import TileOperand
from targets.llvm.kernels.vector_math import prefetch, slice_of, splat, typed

_LEFT, _RIGHT = (4, 5), (6, 7)


def tile_products(
    operand: TileOperand,
    weights: Sequence[PackedWeight],
    ys: Sequence[Buffer],
    *,
    valid: Buffer | None,
) -> None:
    """Emit y = x @ weight.T + bias for each weight."""
    rows = int(operand.x.shape[0])
    all_groups = -(-rows // operand.group_rows)
    if valid is None:
        live: Expr | int = all_groups
    else:
        asked = T.cast(valid[0], "int32") + (operand.group_rows - 1)
        live = T.Bind(T.min(T.floordiv(asked, operand.group_rows), all_groups))
    blocks = sum(weight.blocks for weight in weights)
    with T.serial(-(-all_groups // operand.groups)) as run:
        first = run * operand.groups
        count = T.Bind(T.max(T.min(live - first, operand.groups), 0))
        with T.parallel(count) as group:
            operand.fill(group, (first + group) * operand.group_rows)
        with T.If(count > 0), T.Then(), T.parallel(index(blocks)) as task:
            amx.configure()
            start = 0
            for weight, y in zip(weights, ys, strict=True):
                when_in(task, start, weight.blocks, blocks, lambda block, w=weight, out=y: (
                    _block(operand, w, out, block, first=first, count=count)))
                start += weight.blocks
            amx.release()


def when_in(task: Expr, start: int, count: int, total: int, emit) -> None:
    """Emit it for the tasks from `start`, `count` of them, numbered from 0."""
    if count == total:
        emit(task)
        return
    with T.If(tirx.And(task >= start, task < start + count)), T.Then():
        emit(T.Bind(task - start))


def _block(
    operand: TileOperand, weight: PackedWeight, y: Buffer, block: Expr, *, first: Expr, count: Expr
) -> None:
    """Emit all rows of a run times one block of outputs."""
    kind = "float32" if weight.dtype == "bfloat16" else "int32"
    sums = T.alloc_buffer((2, 2, TILE, TILE), kind)
    # Lines of the next block to ask for in a step, so that all are near when its turn comes.
    ahead = -(-BLOCK // operand.groups)
    with T.serial(count) as group:
        _ask_for_outputs(operand, y, block, (first + group) * operand.group_rows)
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
        for half in range(2):
            for tile in range(2):
                amx.store(2 * half + tile, sums, (half, tile, 0, 0))
        _store_group(operand, weight, y, sums, group, block=block, first=first)


def _ask_for_outputs(operand: TileOperand, y: Buffer, block: Expr, row: Expr) -> None:
    """Emit hints for the lines that a group's sums go to, while they are not there yet."""
    rows, outputs = (int(extent) for extent in y.shape)
    with T.serial(operand.group_rows) as i:
        for tile in range(2):
            at = T.min(block * BLOCK + tile * TILE, outputs - 1)
            prefetch(y, (T.min(row + i, rows - 1), at), is_written=True)


def _store_group(
    operand: TileOperand,
    weight: PackedWeight,
    y: Buffer,
    sums: Buffer,
    group: Expr,
    *,
    block: Expr,
    first: Expr,
) -> None:
    rows = int(y.shape[0])
    halves = 1 if operand.form == "fixed" else 2
    for half in range(halves):
        with T.serial(TILE) as i:
            row = T.Bind((first + group) * operand.group_rows + half * TILE + i)

            def store_row(half: int = half, i: Expr = i, row: Expr = row) -> None:
                factor = operand.factor(group, i, row)
                for tile in range(2):
                    total = _total(sums, half, tile, i, is_fixed=operand.form == "fixed")
                    at = block * BLOCK + tile * TILE
                    store_sums(y, weight, row, at, sums=T.Bind(total), factor=factor)

            if rows % operand.group_rows == 0:
                store_row()
                continue
            with T.If(row < rows), T.Then():
                store_row()


def _total(sums: Buffer, half: int, tile: int, i: Expr, *, is_fixed: bool) -> Expr:
    """16 sums of a row in fp32; of fixed point, 256 times those of the high bytes and the low's."""
    wide = typed("float32", TILE)
    if not is_fixed:
        return T.cast(sums[half, tile, i, slice_of(0, TILE)], wide)
    high, low = (T.cast(sums[part, tile, i, slice_of(0, TILE)], wide) for part in range(2))
    return high * splat(256.0, TILE) + low
