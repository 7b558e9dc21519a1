"""Rows of a packed matrix: the embedding of tokens, from the bytes that the head multiplies."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.packed_weight import BLOCK, QUAD, TILE, packed_shape
from targets.llvm.kernels.parallel_loop import parallel_or_serial
from targets.llvm.kernels.stored_weight import index
from targets.llvm.kernels.vector_math import slice_of


def packed_rows(rows: int, outputs: int, *, inputs: int, dtype: str) -> PrimFunc:
    """Build y[i] = table[ids[i]], where the table [outputs, inputs] is packed.

    Args:
        rows: Rows to take.
        outputs: Rows of the table; an id outside is taken as the nearest row.
        inputs: Columns.
        dtype: int8 or bfloat16, copied as it is.

    Returns:
        A scheduled function of the packed table, ids [rows] int64, y [rows, inputs].
    """
    quad = QUAD[dtype]
    blocks, steps, *tile = packed_shape(outputs, inputs, dtype)
    depth = TILE * quad
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("packed_rows")
        table = T.arg("table", T.buffer((index(blocks), index(steps), *tile), dtype))
        ids = T.arg("ids", T.buffer((rows,), "int64"))
        y = T.arg("y", T.buffer((rows, inputs), dtype))
        with parallel_or_serial(rows, elements=rows * inputs) as i:
            token = T.Bind(T.max(T.min(ids[i], tirx.const(outputs - 1, "int64")), index(0)))
            block, within = T.Bind(token // BLOCK), T.Bind(token % BLOCK)

            def copy(step, r, count):
                at = step * depth + r * quad
                value = table[block, step, within // TILE, r, within % TILE, slice_of(0, count)]
                T.buffer_store(y, value, [i, slice_of(at, count)])

            with T.serial(index(inputs // depth)) as step, T.serial(TILE) as r:
                copy(step, r, quad)
            rest, last = inputs % depth, inputs // depth
            for r in range(rest // quad):
                copy(last, r, quad)
            for k in range(rest - rest % quad, rest):
                value = table[block, last, within // TILE, k // quad, within % TILE, k % quad]
                T.buffer_store(y, value, [i, last * depth + k])
    return finished(builder)
