"""y = (codes @ weight.T) * scales * scale + bias: int8 by int8, with exact int32 sums.

Few rows (decode): dot products along `inputs`, each weight row streamed once. Many rows (prefill):
lanes along rows, the codes transposed once into panels [rows / lanes][inputs / depth][lanes][depth]
that the rows of a block of outputs pass over, as in `outer_products`. Sums being exact, both give
the same bits, whatever the instructions.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.byte_products import EXACT_INPUTS, ByteProducts, byte_products
from targets.llvm.kernels.dot_products import AHEAD, block_columns
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.linear import DOT_ROWS
from targets.llvm.kernels.output_tile import Finish, added, scaled, store_outputs, store_tile
from targets.llvm.kernels.parallel_loop import limit_argument
from targets.llvm.kernels.register_tile import RowChunks, TileShape, live_groups, tile_shape
from targets.llvm.kernels.stored_weight import StoredWeight, index, weight_arguments
from targets.llvm.kernels.vector_math import (
    horizontal_sums,
    load,
    prefetch,
    register,
    slice_of,
    splat,
    store,
    transposed,
    typed,
    value_of,
)

# The codes that all outputs pass over together: half of a 2 MiB L2.
_CHUNK_BYTES = 1024 * 1024
_UNROLL = 4


@dataclass(frozen=True)
class _Operands:
    codes: Buffer
    scales: Buffer
    weight: StoredWeight
    valid: Buffer | None
    y: Buffer

    @property
    def rows(self) -> int:
        return int(self.codes.shape[0])

    @property
    def inputs(self) -> int:
        return self.weight.inputs


def integer_linear(
    rows: int,
    outputs: int,
    *,
    inputs: int,
    has_bias: bool,
    features: CpuFeatures,
    has_limit: bool = False,
) -> PrimFunc:
    """Build the product for static shapes.

    Args:
        rows: Rows of codes; 1 is decode. Up to four use dot products.
        outputs: Rows of the weight.
        inputs: Columns of both, at most `EXACT_INPUTS`.
        has_bias: Whether a bias is added.
        features: What the code may use.
        has_limit: Whether only the first `valid_length` rows are wanted.

    Returns:
        A scheduled function of codes [rows, inputs] int8, scales [rows] fp32, weight
        [outputs, inputs] int8, scale [outputs] fp32, (bias [outputs] fp32,)
        (valid_length [1] int64,) y [rows, outputs] fp32. Codes are within [-127, 127].
    """
    assert inputs <= EXACT_INPUTS, f"{inputs} products may not fit int32"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("integer_linear")
        codes = T.arg("codes", T.buffer((rows, inputs), "int8"))
        scales = T.arg("scales", T.buffer((rows,), "float32"))
        weight = weight_arguments(outputs, inputs, dtype="int8")
        assert weight.scale is not None
        bias = T.arg("bias", T.buffer((outputs,), "float32")) if has_bias else None
        valid = limit_argument(has_limit)
        y = T.arg("y", T.buffer((rows, outputs), "float32"))
        operands = _Operands(codes, scales, weight, valid, y)
        finish = scaled(weight.scale, added(y, bias, None))
        products = byte_products(features)
        if rows <= DOT_ROWS:
            _dot_products(operands, finish, products, features=features)
        else:
            shape = tile_shape(features)
            tile = TileShape(shape.vectors, min(shape.columns, products.lanes), products.lanes)
            _outer_products(operands, finish, products, tile=tile)
    return finished(builder)


# -- few rows


def _dot_products(
    given: _Operands, finish: Finish, products: ByteProducts, *, features: CpuFeatures
) -> None:
    # The weight's own sums take a register beside those of the rows.
    columns = block_columns(given.rows + 1, lanes=products.lanes, features=features)
    streams = min(2, columns) if given.rows == 1 else columns
    outputs = given.weight.outputs
    with T.parallel(index(-(-outputs // columns))) as block:
        first = block * columns
        row_of = [given.weight.row(first, n, columns) for n in range(columns)]
        sums: list[list[Expr]] = [[] for _ in range(given.rows)]
        for n in range(0, columns, streams):
            for m, totals in enumerate(_stream(given, products, row_of[n : n + streams])):
                sums[m] += totals
        for m in range(given.rows):
            total = horizontal_sums(sums[m], products.lanes)
            if given.inputs % products.step:
                total = _add_rest(total, given, m=m, row_of=row_of, step=products.step)
            wide = T.cast(total, typed("float32", columns))
            factor = splat(given.scales[m], columns)
            store_outputs(given.y, m, first, value=T.Bind(wide * factor), finish=finish)


def _stream(given: _Operands, products: ByteProducts, row_of: list[Expr]) -> list[list[Expr]]:
    """Emit the products of all rows with these rows of the weight, lanes not yet summed."""
    lanes, values = products.lanes, given.weight.values
    sums = [[register(lanes, dtype="int32") for _ in row_of] for _ in range(given.rows)]
    own = [register(lanes, dtype="int32") for _ in row_of]
    with T.serial(given.inputs // products.step) as step:
        k = step * products.step
        vectors = [
            T.Bind(products.left(T.Bind(products.units(given.codes, (m, k)))))
            for m in range(given.rows)
        ]
        for n, row in enumerate(row_of):
            if given.rows == 1:
                prefetch(values, (row, k + AHEAD))
            right = T.Bind(values[row, slice_of(k, products.step)])
            for m, vector in enumerate(vectors):
                products.add(sums[m][n], vector, right)
            if products.intrinsic:
                products.add(own[n], products.ones(), right)
    excess = [T.Bind(products.excess(value_of(one), lanes)) for one in own]
    return [
        [T.Bind(value_of(total) - excess[n]) for n, total in enumerate(row_sums)]
        for row_sums in sums
    ]


def _add_rest(total: Expr, given: _Operands, *, m: int, row_of: list[Expr], step: int) -> Expr:
    """Emit the products past the last whole vector, one by one."""
    columns = len(row_of)
    whole = given.inputs - given.inputs % step
    rest = register(columns, value=total, dtype="int32")
    with T.serial(given.inputs - whole) as k:
        code = T.Bind(T.cast(given.codes[m, whole + k], "int32"))
        for n, row in enumerate(row_of):
            factor = T.cast(given.weight.values[row, whole + k], "int32")
            T.buffer_store(rest, rest[n] + code * factor, [n])
    return T.Bind(value_of(rest))


# -- many rows


def _outer_products(
    given: _Operands, finish: Finish, products: ByteProducts, *, tile: TileShape
) -> None:
    groups = -(-given.rows // tile.lanes)
    units = -(-given.inputs // products.depth)
    panels = T.alloc_buffer((groups, units, products.step), products.left_dtype)
    factors = T.alloc_buffer((groups * tile.lanes,), "float32")
    live = live_groups(given.rows, tile.lanes, given.valid)
    with T.parallel(live) as group:
        _transpose_rows(given, panels, factors, group, products=products)
    chunks = RowChunks(
        groups,
        tile,
        tiles=max(_CHUNK_BYTES // (units * products.step * tile.vectors), 1),
        live=live,
    )
    padded = -(-given.inputs // products.step) * products.step
    with (
        T.serial(chunks.count) as chunk,
        T.parallel(index(-(-given.weight.outputs // tile.columns))) as block,
    ):
        first = block * tile.columns
        panel = T.alloc_buffer((tile.columns, padded), "int8")
        starts = T.alloc_buffer((tile.columns,), "int32")
        _copy_rows(given.weight, panel, first, step=products.step)
        _start_sums(panel, starts, products)

        def pass_rows(group: Expr | int, vectors: int) -> None:
            sums = _sums(panels, panel, starts, group, products, vectors=vectors)
            for m in range(vectors):
                row = (group + m) * tile.lanes
                factor = T.Bind(load(factors, (row,), tile.lanes))
                wide = [
                    T.cast(value_of(total), typed("float32", tile.lanes)) * factor
                    for total in sums[m]
                ]
                store_tile(given.y, row, first, tile=wide, finish=finish)

        chunks.each_tile(chunk, pass_rows)


def _sums(
    panels: Buffer,
    panel: Buffer,
    starts: Buffer,
    group: Expr | int,
    products: ByteProducts,
    *,
    vectors: int,
) -> list[list[Buffer]]:
    """Emit the products of `vectors` groups of rows with the panel's rows."""
    columns, units = int(panel.shape[0]), int(panels.shape[1])
    sums = [
        [
            register(products.lanes, value=splat(starts[n], products.lanes), dtype="int32")
            for n in range(columns)
        ]
        for _ in range(vectors)
    ]
    unroll = _UNROLL if units % _UNROLL == 0 else 1
    with T.serial(units // unroll) as step:
        for u in range(unroll):
            k = step * unroll + u
            left = [
                T.Bind(panels[group + m, k, slice_of(0, products.step)]) for m in range(vectors)
            ]
            for n in range(columns):
                right = T.Bind(products.repeated(panel, (n, k * products.depth)))
                for m, vector in enumerate(left):
                    products.add(sums[m][n], vector, right)
    return sums


def _transpose_rows(
    given: _Operands, panels: Buffer, factors: Buffer, group: Expr, *, products: ByteProducts
) -> None:
    """Emit panels[group, k / depth, i] = codes[group * lanes + i, k], and the rows' scales.

    Rows past the end repeat the last. Codes past the last input are never written: they meet zeros
    of the weight's panel.
    """
    rows, inputs, lanes, depth = given.rows, given.inputs, products.lanes, products.depth
    row_of = [T.min(group * lanes + i, rows - 1) for i in range(lanes)]
    for i, row in enumerate(row_of):
        T.buffer_store(factors, given.scales[row], [group * lanes + i])
    whole = inputs - inputs % products.step
    with T.serial(whole // products.step) as step:
        loaded = [
            T.Bind(products.units(given.codes, (row, step * products.step))) for row in row_of
        ]
        for i, units in enumerate(transposed(loaded, lanes)):
            at = (group, step * lanes + i, slice_of(0, products.step))
            T.buffer_store(panels, products.left(units), [*at])
    with T.serial(inputs - whole) as k:
        at = T.Bind(whole + k)
        for i, row in enumerate(row_of):
            lane = i * depth + T.floormod(at, depth)
            code = products.left_code(given.codes[row, at])
            T.buffer_store(panels, code, [group, T.floordiv(at, depth), lane])


def _copy_rows(weight: StoredWeight, panel: Buffer, first: Expr, *, step: int) -> None:
    """Emit panel[n] = weight[first + n], zeros behind it; rows past the end repeat the last."""
    columns, padded = (int(extent) for extent in panel.shape)
    whole = weight.inputs - weight.inputs % step
    for n in range(columns):
        row = weight.row(first, n, columns)
        with T.serial(whole // step) as turn:
            vector = slice_of(turn * step, step)
            T.buffer_store(panel, weight.values[row, vector], [n, vector])
        with T.serial(weight.inputs - whole) as k:
            T.buffer_store(panel, weight.values[row, whole + k], [n, whole + k])
        with T.serial(padded - weight.inputs) as k:
            T.buffer_store(panel, tirx.const(0, "int8"), [n, weight.inputs + k])


def _start_sums(panel: Buffer, starts: Buffer, products: ByteProducts) -> None:
    """Emit what each output's sum starts from: less the excess of its weights."""
    columns, padded = (int(extent) for extent in panel.shape)
    if not products.intrinsic:
        store(starts, (0,), splat(tirx.const(0, "int32"), columns), lanes=columns)
        return
    own = [register(products.lanes, dtype="int32") for _ in range(columns)]
    with T.serial(padded // products.step) as step:
        for n, total in enumerate(own):
            codes = panel[n, slice_of(step * products.step, products.step)]
            products.add(total, products.ones(), codes)
    sums = horizontal_sums([T.Bind(value_of(total)) for total in own], products.lanes)
    zero = splat(tirx.const(0, "int32"), columns)
    store(starts, (0,), zero - products.excess(sums, columns), lanes=columns)
