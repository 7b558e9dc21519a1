"""y = x @ weight.T + bias, for the checkpoint's own [outputs, inputs] weight, of any float dtype.

Few rows (decode): dot products. Each block of outputs streams its weight rows once; lanes run
along `inputs`, and a shuffle tree sums the lanes of a block at the end.

Many rows (prefill): outer products. x is transposed once into panels [rows / lanes][inputs][lanes],
so lanes run along rows. For a block of outputs and a stretch of `inputs`, the weight is widened
into a panel of fp32 that stays in L1, and the rows of x that fit L2 pass over it (BLIS's five
loops, the operands' roles exchanged: https://doi.org/10.1145/2764454). The tile is transposed back
in registers as it is stored.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.register_tile import (
    TileShape,
    multiply_accumulate,
    tile_shape,
    zeros,
)
from targets.llvm.kernels.vector_math import (
    assign,
    horizontal_sums,
    load,
    part,
    prefetch,
    register,
    splat,
    store,
    transposed,
    value_of,
)

# The panel of widened weights: 32 KiB of fp32 leaves a third of a 48 KiB L1 to x and y.
_PANEL_FLOATS = 8 * 1024
# The rows of x that all outputs pass over together: 1 MiB leaves half of a 2 MiB L2.
_CHUNK_FLOATS = 256 * 1024
_DOT_ROWS = 4
_UNROLL = 4
# How far ahead of its reads a stream of weights is asked for, in bytes.
_AHEAD = 4096
_CACHE_LINE = 64

# What a sum starts from: (row of y, first output, lanes) -> that many lanes.
_Start = Callable[[Expr | int, Expr, int], Expr]


def linear(
    rows: int,
    outputs: int,
    *,
    inputs: int,
    weight_dtype: str,
    has_bias: bool,
    features: CpuFeatures,
) -> PrimFunc:
    """Build the product for static shapes.

    Args:
        rows: Rows of x; 1 is decode. Up to four use dot products.
        outputs: Rows of the weight.
        inputs: Columns of x and of the weight.
        weight_dtype: float32, bfloat16 or float16; widened in registers, accumulated in fp32.
        has_bias: Whether a bias is added.
        features: What the code may use.

    Returns:
        A scheduled function of x [rows, inputs] fp32, weight [outputs, inputs], (bias [outputs]
        fp32,) y [rows, outputs] fp32.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("linear")
        x = T.arg("x", T.buffer((rows, inputs), "float32"))
        weight = T.arg("weight", T.buffer((_index(outputs), _index(inputs)), weight_dtype))
        bias = T.arg("bias", T.buffer((outputs,), "float32")) if has_bias else None
        y = T.arg("y", T.buffer((rows, outputs), "float32"))
        if rows <= _DOT_ROWS:
            _dot_products(x, weight, bias, y, features=features)
        else:
            _outer_products(x, weight, bias, y, tile=tile_shape(features))
    return finished(builder)


def _dot_products(
    x: Buffer, weight: Buffer, bias: Buffer | None, y: Buffer, *, features: CpuFeatures
) -> None:
    rows, inputs = (int(extent) for extent in x.shape)
    outputs = int(weight.shape[0])
    lanes = features.lanes
    columns = min(lanes, max(features.vector_registers // 4 // rows, 2))
    columns = 1 << (columns.bit_length() - 1)
    # One row waits for memory, which likes few streams with a prefetch; more rows share the loads.
    streams, unroll = (min(2, columns), 2) if rows == 1 else (columns, 1)
    whole = inputs - inputs % (lanes * unroll)
    with T.parallel(_index(-(-outputs // columns))) as block:
        first = block * columns
        is_ragged = outputs % columns != 0
        row_of = [T.min(first + n, outputs - 1) if is_ragged else first + n for n in range(columns)]
        sums: list[list[Expr]] = [[] for _ in range(rows)]
        for n in range(0, columns, streams):
            stream = row_of[n : n + streams]
            found = _stream(x, weight, stream, whole=whole, lanes=lanes, unroll=unroll)
            for m, totals in enumerate(found):
                sums[m] += totals
        for m in range(rows):
            total = horizontal_sums(sums[m], lanes)
            if whole < inputs:
                total = _add_rest(total, x, weight, m=m, row_of=row_of, whole=whole)
            _store_outputs(y, m, first, value=total, start=_start(y, bias, None))


def _stream(
    x: Buffer, weight: Buffer, row_of: list[Expr], *, whole: int, lanes: int, unroll: int
) -> list[list[Expr]]:
    """Emit the products of every row of x with these rows of the weight, lanes not yet summed."""
    rows = int(x.shape[0])
    sums = [[[register(lanes) for _ in range(unroll)] for _ in row_of] for _ in range(rows)]
    itemsize = 4 if weight.dtype == "float32" else 2
    with T.serial(whole // (lanes * unroll)) as step:
        for u in range(unroll):
            k = (step * unroll + u) * lanes
            vectors = [T.Bind(load(x, (m, k), lanes)) for m in range(rows)]
            for n, row in enumerate(row_of):
                if rows == 1 and u * lanes * itemsize % _CACHE_LINE == 0:
                    prefetch(weight, (row, k + _AHEAD // itemsize))
                factor = T.Bind(load(weight, (row, k), lanes))
                for m, vector in enumerate(vectors):
                    assign(sums[m][n][u], value_of(sums[m][n][u]) + vector * factor)
    return [[T.Bind(_total(parts)) for parts in row_sums] for row_sums in sums]


def _total(parts: list[Buffer]) -> Expr:
    total = value_of(parts[0])
    for other in parts[1:]:
        total = total + value_of(other)
    return total


def _add_rest(
    total: Expr, x: Buffer, weight: Buffer, *, m: int, row_of: list[Expr], whole: int
) -> Expr:
    """Emit the products past the last whole vector, one by one."""
    columns = len(row_of)
    rest = T.alloc_buffer((columns,), "float32")
    store(rest, (0,), total, lanes=columns)
    with T.serial(int(x.shape[1]) - whole) as k:
        for n, row in enumerate(row_of):
            product = load(x, (m, whole + k), 1) * load(weight, (row, whole + k), 1)
            T.buffer_store(rest, rest[n] + product, [n])
    return T.Bind(load(rest, (0,), columns))


def _outer_products(
    x: Buffer, weight: Buffer, bias: Buffer | None, y: Buffer, *, tile: TileShape
) -> None:
    rows, inputs = (int(extent) for extent in x.shape)
    outputs = int(weight.shape[0])
    groups = -(-rows // tile.lanes)
    panels = T.alloc_buffer((groups, inputs, tile.lanes), "float32")
    with T.parallel(groups) as group:
        _transpose_rows(x, panels, group, lanes=tile.lanes)
    depth = _panel_depth(inputs, tile)
    tiles = max(groups // tile.vectors, 1)
    tiles_of_chunk = max(_CHUNK_FLOATS // (depth * tile.lanes * tile.vectors), 1)
    chunks = -(-tiles // tiles_of_chunk)
    # Outside in: rows of x and a stretch of inputs that fit L2, then outputs, then a tile's rows.
    with T.grid(chunks, -(-inputs // depth)) as (chunk, stretch):
        start = T.Bind(stretch * depth)
        length = depth if depth == inputs else T.Bind(T.min(depth, inputs - start))
        with T.parallel(_index(-(-outputs // tile.columns))) as block:
            first = block * tile.columns
            panel = T.alloc_buffer((tile.columns, depth), "float32")
            _widen_panel(weight, panel, first, start=start, length=length, lanes=tile.lanes)

            def pass_rows(group: Expr | int, vectors: int) -> None:
                sums = zeros(vectors, tile.columns, tile.lanes)
                multiply_accumulate(
                    sums,
                    length,
                    left=lambda m, k: load(panels, (group + m, start + k, 0), tile.lanes),
                    right=lambda n, k: panel[n, k],
                    unroll=_UNROLL if inputs % _UNROLL == 0 else 1,
                )
                for m in range(vectors):
                    _store_tile(
                        y,
                        (group + m) * tile.lanes,
                        first,
                        tile=[value_of(total) for total in sums[m]],
                        start=_start(y, bias, None if depth == inputs else start == 0),
                    )

            whole = groups // tile.vectors
            if whole > 0:
                done = chunk * tiles_of_chunk
                with T.serial(T.min(tiles_of_chunk, whole - done)) as step:
                    pass_rows((done + step) * tile.vectors, tile.vectors)
            if groups % tile.vectors != 0:
                with T.If(chunk == chunks - 1), T.Then():
                    pass_rows(whole * tile.vectors, groups % tile.vectors)


def _panel_depth(inputs: int, tile: TileShape) -> int:
    """Columns of the weight in one panel: all of them, or equal stretches of whole vectors."""
    stretches = -(-inputs * tile.columns // _PANEL_FLOATS)
    if stretches == 1:
        return inputs
    step = tile.lanes * _UNROLL
    return -(-inputs // (stretches * step)) * step


def _start(y: Buffer, bias: Buffer | None, is_first: Expr | None) -> _Start:
    """What a sum starts from: the bias, or, past the first stretch of inputs, y itself."""

    def start(m: Expr | int, n: Expr, lanes: int) -> Expr:
        fresh = splat(0.0, lanes) if bias is None else load(bias, (n,), lanes)
        if is_first is None:
            return fresh
        condition = is_first if lanes == 1 else tirx.Broadcast(is_first, lanes)
        return T.Select(condition, fresh, load(y, (m, n), lanes))

    return start


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
    weight: Buffer, panel: Buffer, first: Expr, *, start: Expr, length: Expr | int, lanes: int
) -> None:
    """Emit panel[n, k] = fp32(weight[first + n, start + k]); rows past the end repeat the last."""
    outputs, inputs = (int(extent) for extent in weight.shape)
    columns = int(panel.shape[0])
    whole = length - length % lanes
    for n in range(columns):
        row = T.min(first + n, outputs - 1) if outputs % columns else first + n
        with T.serial(whole // lanes) as step:
            k = step * lanes
            store(panel, (n, k), load(weight, (row, start + k), lanes), lanes=lanes)
        if inputs % lanes != 0:
            with T.serial(length - whole) as k:
                store(panel, (n, whole + k), load(weight, (row, start + whole + k), 1), lanes=1)


def _store_tile(
    y: Buffer, row: Expr | int, first: Expr, *, tile: list[Expr], start: _Start
) -> None:
    """Emit a [columns, lanes] tile of sums into rows [row, row + lanes) of y."""
    rows, columns = int(y.shape[0]), len(tile)
    lanes = tile[0].ty.dtype.lanes
    vectors = transposed([T.Bind(vector) for vector in tile], lanes)
    for i in range(lanes):
        per_vector = lanes // columns
        offset = i % per_vector * columns
        value = T.Bind(part(vectors[i // per_vector], offset, columns))
        if rows % lanes == 0:
            _store_outputs(y, row + i, first, value=value, start=start)
            continue
        with T.If(row + i < rows), T.Then():
            _store_outputs(y, row + i, first, value=value, start=start)


def _store_outputs(y: Buffer, m: Expr | int, first: Expr, *, value: Expr, start: _Start) -> None:
    """Emit y[m, first + n] = start + value[n], never past the last output."""
    outputs, columns = int(y.shape[1]), value.ty.dtype.lanes

    def whole() -> None:
        store(y, (m, first), value + start(m, first, columns), lanes=columns)

    def ragged() -> None:
        rest = register(columns, value=value)
        with T.serial(outputs % columns) as n:
            T.buffer_store(y, rest[n] + start(m, first + n, 1), [m, first + n])

    if outputs % columns == 0:
        whole()
        return
    if outputs < columns:
        ragged()
        return
    with T.If(first + columns <= outputs):
        with T.Then():
            whole()
        with T.Else():
            ragged()


def _index(extent: int) -> Expr:
    """A loop's extent whose variable is 64-bit: a weight may hold over 2^31 elements."""
    return tirx.const(extent, "int64")
