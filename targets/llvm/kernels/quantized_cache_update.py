"""Round the new rows of keys or values to int8 and write codes and scales into their caches."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.cache_update import writable
from targets.llvm.kernels.int8_row import round_row
from targets.llvm.kernels.kernel_function import begin, finished


def quantized_cache_update(
    tokens: int, kv_heads: int, *, head_dim: int, context: int, features: CpuFeatures
) -> PrimFunc:
    """Build codes[past + i], scales[past + i] = rows[i] as `int8_row` rounds, for i < valid_length.

    Each head is a row by itself.

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
            to = (first + i, head)
            scale = round_row(rows, (i, head), codes, to, lanes=features.lanes)
            T.buffer_store(scales, scale, [*to, 0])
    return finished(builder)
