"""Write the new rows of keys or values into their cache, in place."""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.parallel_loop import parallel_or_serial
from targets.llvm.kernels.vector_math import chunks, load, narrow, slice_of, store


def cache_update(
    tokens: int,
    kv_heads: int,
    *,
    head_dim: int,
    context: int,
    cache_dtype: str,
    rows_dtype: str = "float32",
    features: CpuFeatures,
) -> PrimFunc:
    """Build cache[past_length + i] = rows[i] for i < valid_length.

    Args:
        tokens: Rows given; those from `valid_length` on are padding and are not written.
        kv_heads: Heads of the cache.
        head_dim: Elements of one head.
        context: Rows of the cache; a row that would fall outside is not written.
        cache_dtype: float32, bfloat16 or float16; rounded to nearest, ties to even.
        rows_dtype: float32, or the cache's dtype, whatever it is: then rows are copied.
        features: What the code may use.

    Returns:
        A scheduled function of cache [context, kv_heads, head_dim], written **in place**, rows
        [tokens, kv_heads, head_dim], past_length [1] int64, valid_length [1] int64. For
        `relax.call_tir_inplace` the cache is argument 0: `inplace_indices=[0]`.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("cache_update")
        cache = T.arg("cache", T.buffer((context, kv_heads, head_dim), cache_dtype))
        rows = T.arg("rows", T.buffer((tokens, kv_heads, head_dim), rows_dtype))
        past_length = T.arg("past_length", T.buffer((1,), "int64"))
        valid_length = T.arg("valid_length", T.buffer((1,), "int64"))
        first, count = writable(past_length, valid_length, tokens=tokens, context=context)
        elements = tokens * kv_heads * head_dim
        with parallel_or_serial(count, elements=elements) as i, T.serial(_int64(kv_heads)) as head:
            for d, width in chunks(head_dim, features.lanes):
                if rows_dtype == cache_dtype:
                    value = rows[i, head, slice_of(d, width)]
                else:
                    value = narrow(load(rows, (i, head, d), width), cache_dtype, lanes=width)
                store(cache, (first + i, head, d), value, lanes=width)
    return finished(builder)


def writable(
    past_length: Buffer, valid_length: Buffer, *, tokens: int, context: int
) -> tuple[Expr, Expr]:
    """Emit the cache's row that the first one goes to, and how many are written."""
    first = T.Bind(T.max(past_length[0], _int64(0)))
    valid = T.min(valid_length[0], _int64(tokens))
    return first, T.Bind(T.max(T.min(valid, _int64(context) - first), _int64(0)))


def _int64(value: int) -> Expr:
    return tirx.const(value, "int64")
