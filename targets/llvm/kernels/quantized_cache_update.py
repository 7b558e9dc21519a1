"""Round the new rows of keys or values to int8 and write codes and scales into their caches."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

import numpy as np
from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.cache_update import writable
from targets.llvm.kernels.kernel_function import begin, finished
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


def quantized_cache_update(
    tokens: int, kv_heads: int, *, head_dim: int, context: int, features: CpuFeatures
) -> PrimFunc:
    """Build scales[past + i] = absmax(rows[i]) / 127, codes[past + i] = round(rows[i] / scale).

    Over i < valid_length, for each head by itself. To nearest, ties to even; a scale that would be
    subnormal is 1. What NaN and infinity become is not said.

    Args:
        tokens: Rows given; those from `valid_length` on are padding and are not written.
        kv_heads: Heads of the cache.
        head_dim: Elements of one head.
        context: Rows of the cache; a row that would fall outside is not written.
        features: What the code may use.

    Returns:
        A scheduled function of codes [context, kv_heads, head_dim] int8 and scales
        [context, kv_heads, 1] fp32, both written **in place**, rows [tokens, kv_heads, head_dim]
        fp32, past_length [1] int64, valid_length [1] int64.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("quantized_cache_update")
        codes = T.arg("codes", T.buffer((context, kv_heads, head_dim), "int8"))
        scales = T.arg("scales", T.buffer((context, kv_heads, 1), "float32"))
        rows = T.arg("rows", T.buffer((tokens, kv_heads, head_dim), "float32"))
        past_length = T.arg("past_length", T.buffer((1,), "int64"))
        valid_length = T.arg("valid_length", T.buffer((1,), "int64"))
        first, count = writable(past_length, valid_length, tokens=tokens, context=context)
        with T.serial(count) as i, T.serial(tirx.const(kv_heads, "int64")) as head:
            quotient = T.Bind(_absmax(rows, (i, head), features) / splat(_LARGEST_CODE, 1))
            is_small = quotient < splat(_SMALLEST_SCALE, 1)
            scale = T.Bind(T.Select(is_small, splat(1.0, 1), quotient))
            T.buffer_store(scales, scale, [first + i, head, 0])
            for d, width in chunks(head_dim, features.lanes):
                entry = T.nearbyint(load(rows, (i, head, d), width) / splat(scale, width))
                code = T.cast(entry, typed("int8", width))
                store(codes, (first + i, head, d), code, lanes=width)
    return finished(builder)


def _absmax(rows: Buffer, at: tuple[Expr, Expr], features: CpuFeatures) -> Expr:
    """Emit the largest magnitude of one head's row."""
    largest: Expr = splat(0.0, 1)
    widths: dict[int, Buffer] = {}
    head_dim = int(rows.shape[2])
    for d, width in chunks(head_dim, features.lanes):
        value = load(rows, (*at, d), width)
        size = T.max(value, splat(0.0, width) - value)
        if width in widths:
            assign(widths[width], T.max(value_of(widths[width]), size))
        else:
            widths[width] = register(width, value=size)
    for width, variable in widths.items():
        largest = T.Bind(T.max(largest, horizontal_max(T.Bind(value_of(variable)), width)))
    return largest
