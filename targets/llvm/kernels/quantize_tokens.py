"""x -> int8 codes and one scale a row: scale = absmax / 127, codes = x / scale, half to even.

A row whose scale would be zero or subnormal has the scale 1 and codes of zero. A row with a NaN or
an infinity has that for its scale, so that nothing made of it is finite; its codes mean nothing.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import parallel_or_serial
from targets.llvm.kernels.vector_math import (
    assign,
    chunks,
    horizontal_max,
    load,
    register,
    splat,
    store,
    typed,
    value_of,
)

_LARGEST_CODE = 127.0
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_MAGNITUDE_BITS = 0x7FFFFFFF


def quantize_tokens(rows: int, width: int, *, features: CpuFeatures) -> PrimFunc:
    """Build the rounding for static shapes.

    Args:
        rows: Rows of x, each with a scale of its own.
        width: Columns of x.
        features: What the code may use.

    Returns:
        A scheduled function of x [rows, width] fp32, codes [rows, width] int8, scales [rows] fp32.
    """
    lanes = features.lanes
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("quantize_tokens")
        x = T.arg("x", T.buffer((rows, width), "float32"))
        codes = T.arg("codes", T.buffer((rows, width), "int8"))
        scales = T.arg("scales", T.buffer((rows,), "float32"))
        # RewriteDataflowReshape looks for a block in every function of one input.
        with T.sblock("root"), parallel_or_serial(rows, elements=rows * width) as row:
            raw = T.Bind(_largest_magnitude(x, row, lanes=lanes) / splat(_LARGEST_CODE, 1))
            scale = T.Bind(T.Select(raw < splat(_SMALLEST_SCALE, 1), splat(1.0, 1), raw))
            T.buffer_store(scales, scale, [row])

            def quantize(k: Expr | int, count: int) -> None:
                code = T.nearbyint(load(x, (row, k), count) / splat(scale, count))
                store(codes, (row, k), T.cast(code, typed("int8", count)), lanes=count)

            whole = width - width % lanes
            with T.serial(whole // lanes) as step:
                quantize(step * lanes, lanes)
            for k, count in chunks(width - whole, lanes):
                quantize(whole + k, count)
    return finished(builder)


def _largest_magnitude(x: Buffer, row: Expr, *, lanes: int) -> Expr:
    """Emit the largest |x| of a row, by its bits as an integer: a NaN is larger than any number."""
    width = int(x.shape[1])
    whole = width - width % lanes
    largest = register(lanes, dtype="int32")
    with T.serial(whole // lanes) as step:
        assign(largest, T.max(value_of(largest), _magnitude(x, row, step * lanes, lanes)))
    found = T.Bind(horizontal_max(T.Bind(value_of(largest)), lanes))
    for k, count in chunks(width - whole, lanes):
        rest = T.Bind(_magnitude(x, row, whole + k, count))
        found = T.Bind(T.max(found, horizontal_max(rest, count)))
    return T.Bind(T.reinterpret("float32", found))


def _magnitude(x: Buffer, row: Expr, k: Expr | int, lanes: int) -> Expr:
    bits = T.reinterpret(typed("int32", lanes), load(x, (row, k), lanes))
    return bits & splat(tirx.const(_MAGNITUDE_BITS, "int32"), lanes)
