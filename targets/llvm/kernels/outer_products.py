"""The product of many rows (prefill): lanes along rows, no sum ever crosses a vector.

x is transposed once into panels [rows / lanes][inputs][lanes]. For a block of outputs and a stretch
of `inputs`, the weight is widened (and scaled) into a panel of fp32 that stays in L1, and the rows
of x that fit L2 pass over it (BLIS's five loops, the operands' roles exchanged:
https://doi.org/10.1145/2764454). The tile is transposed back in registers as it is stored.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.ir import Expr
from tvm.tirx import Buffer
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.dot_products import CACHE_LINE
from targets.llvm.kernels.output_tile import added, store_tile
from targets.llvm.kernels.register_tile import (
    RowChunks,
    TileShape,
    live_groups,
    multiply_accumulate,
    zeros,
)
from targets.llvm.kernels.stored_weight import StoredWeight, index
from targets.llvm.kernels.vector_math import load, prefetch, store, transposed, value_of

# The panel of widened weights: 32 KiB of fp32 leaves a third of a 48 KiB L1 to x and y.
_PANEL_FLOATS = 8 * 1024
# The rows of x that all outputs pass over together: 1 MiB leaves half of a 2 MiB L2.
_CHUNK_FLOATS = 256 * 1024
_UNROLL = 4


def outer_products(
    x: Buffer,
    weight: StoredWeight,
    bias: Buffer | None,
    y: Buffer,
    *,
    tile: TileShape,
    valid: Buffer | None,
) -> None:
    """Emit y = x @ weight.T + bias for any number of rows of x, or the first `valid`."""
    rows, inputs = (int(extent) for extent in x.shape)
    groups = -(-rows // tile.lanes)
    panels = T.alloc_buffer((groups, inputs, tile.lanes), "float32")
    live = live_groups(rows, tile.lanes, valid)
    with T.parallel(live) as group:
        _transpose_rows(x, panels, group, lanes=tile.lanes)
    depth = _panel_depth(inputs, tile)
    chunks = RowChunks(
        groups,
        tile,
        tiles=max(_CHUNK_FLOATS // (depth * tile.lanes * tile.vectors), 1),
        live=live,
    )
    # Outside in: rows of x and a stretch of inputs that fit L2, then outputs, then a tile's rows.
    with T.grid(chunks.count, -(-inputs // depth)) as (chunk, stretch):
        start = T.Bind(stretch * depth)
        length = depth if depth == inputs else T.Bind(T.min(depth, inputs - start))
        with T.parallel(index(-(-weight.outputs // tile.columns))) as block:
            first = block * tile.columns
            panel = T.alloc_buffer((tile.columns, depth), "float32")
            _widen_panel(weight, panel, first, start=start, length=length, lanes=tile.lanes)

            def pass_rows(group: Expr | int, vectors: int) -> None:
                turn = T.Bind((group - chunk * chunks.tiles * tile.vectors) // tile.vectors)
                _ask_for_outputs(y, group * tile.lanes, first, count=vectors * tile.lanes)
                sums = zeros(vectors, tile.columns, tile.lanes)
                multiply_accumulate(
                    sums,
                    length,
                    left=lambda m, k: load(panels, (group + m, start + k, 0), tile.lanes),
                    right=lambda n, k: panel[n, k],
                    unroll=_UNROLL if inputs % _UNROLL == 0 else 1,
                    meanwhile=lambda step: _ask_for_weights(
                        weight,
                        first + tile.columns,
                        start,
                        line=turn * (depth // _UNROLL) + step,
                        shape=(tile.columns, depth),
                    ),
                )
                for m in range(vectors):
                    store_tile(
                        y,
                        (group + m) * tile.lanes,
                        first,
                        tile=[value_of(total) for total in sums[m]],
                        finish=added(y, bias, None if depth == inputs else start == 0),
                    )

            chunks.each_tile(chunk, pass_rows)


def _ask_for_outputs(y: Buffer, row: Expr | int, first: Expr, *, count: int) -> None:
    """Emit hints for the lines that a tile's sums go to, while they are not there yet."""
    rows, outputs = (int(extent) for extent in y.shape)
    with T.serial(count) as i:
        at = (T.min(row + i, rows - 1), T.min(first, outputs - 1))
        prefetch(y, at, is_written=True)


def _ask_for_weights(
    weight: StoredWeight, row: Expr, start: Expr, *, line: Expr, shape: tuple[int, int]
) -> None:
    """Emit a hint for a line of the next block's weights, [columns, depth], or its last one."""
    columns, depth = shape
    per_line = CACHE_LINE // weight.itemsize
    element = T.Bind(T.min(line, max(columns * depth // per_line, 1) - 1) * per_line)
    prefetch(weight.values, (row + element // depth, start + element % depth))


def _panel_depth(inputs: int, tile: TileShape) -> int:
    """Columns of the weight in one panel: all of them, or equal stretches of whole vectors."""
    stretches = -(-inputs * tile.columns // _PANEL_FLOATS)
    if stretches == 1:
        return inputs
    step = tile.lanes * _UNROLL
    return -(-inputs // (stretches * step)) * step


def _transpose_rows(x: Buffer, panels: Buffer, group: Expr, *, lanes: int) -> None:
    """Emit panels[group, k, i] = x[group * lanes + i, k]; rows past the end repeat the last."""
    rows, inputs = (int(extent) for extent in x.shape)
    is_ragged = rows % lanes != 0
    row_of = [
        T.min(group * lanes + i, rows - 1) if is_ragged else group * lanes + i for i in range(lanes)
    ]
    whole = inputs - inputs % lanes
    with T.serial(whole // lanes) as step:
        k = step * lanes
        square = transposed([T.Bind(load(x, (row, k), lanes)) for row in row_of], lanes)
        for i, vector in enumerate(square):
            store(panels, (group, k + i, 0), vector, lanes=lanes)
    if whole < inputs:
        with T.serial(inputs - whole) as k:
            for i, row in enumerate(row_of):
                T.buffer_store(panels, x[row, whole + k], [group, whole + k, i])


def _widen_panel(
    weight: StoredWeight, panel: Buffer, first: Expr, *, start: Expr, length: Expr | int, lanes: int
) -> None:
    """Emit panel[n, k] = weight[first + n, start + k] in fp32; rows past the end repeat the last.

    A group may be no multiple of the lanes: then a vector is as wide as divides it.
    """
    columns, width = int(panel.shape[0]), weight.width(lanes)
    whole = length - length % width
    for n in range(columns):
        row = weight.row(first, n, columns)
        with T.serial(whole // width) as step:
            k = step * width
            store(panel, (n, k), weight.scaled(row, start + k, width), lanes=width)
        if weight.inputs % width != 0:
            with T.serial(length - whole) as k:
                store(panel, (n, whole + k), weight.scaled(row, start + whole + k, 1), lanes=1)
