"""Causal grouped-query attention over a KV cache whose new rows are already written.

Scores never exist as a [tokens, context] matrix: both forms walk over the keys in blocks and
rescale what they have so far. The online softmax is Milakov and Gimelshein's
(https://arxiv.org/abs/1805.02867), its blocks are FlashAttention's
(https://arxiv.org/abs/2205.14135), and one token's keys are split over the threads as in
Flash-Decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

A cache of 16 bits or int8 is widened in registers or a block of 64 keys at a time: nothing as long
as the cache is made of it. One token multiplies scores by the keys' scales and weights by the
values' instead of each entry; many tokens share the entries of a block, which are scaled once.
Where tiles multiply bfloat16 as it is, a task makes a copy of its head's rows in their layout.
"""

# TVM annotates its expressions without their operators, and index lists without plain integers.
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from targets.llvm.features import CpuFeatures
from targets.llvm.kernels.attention_shape import AttentionShape, Operands
from targets.llvm.kernels.decode_attention import emit_decode
from targets.llvm.kernels.kernel_function import begin, finished
from targets.llvm.kernels.prefill_attention import emit_prefill
from targets.llvm.kernels.tile_attention import emit_tile_prefill, has_tile_prefill


def attention(
    tokens: int,
    heads: int,
    *,
    kv_heads: int,
    head_dim: int,
    context: int,
    window: int = 0,
    scale: float,
    cache_dtype: str,
    features: CpuFeatures,
) -> PrimFunc:
    """Build softmax(scale * q @ k.T, over the allowed keys) @ v.

    Row i stands at position past_length + i. It attends to the keys j <= past_length + i with
    j < past_length + valid_length, and with a window to those with j > past_length + i - window;
    where there is none, its output is zero. Query head h reads kv head h // (heads / kv_heads).
    Loops go from the first to the last allowed key, not to `context`; cache rows past it may hold
    anything. Of many tokens, blocks of rows past the valid ones are skipped: the output of rows
    from valid_length on is unspecified, and may be what the memory held before.

    Args:
        tokens: Query rows; 1 is decode.
        heads: Query heads, a multiple of `kv_heads`.
        kv_heads: Heads of the caches.
        head_dim: Elements of one head.
        context: Rows of the caches; past_length + valid_length may not exceed it.
        window: Keys that a row sees at most, itself included; 0 is all.
        scale: Factor on the scores.
        cache_dtype: float32, bfloat16, float16 or int8. Arithmetic is fp32, but for many tokens on
            bfloat16 where the processor has tiles (`has_tile_prefill`): there q is rounded to
            bfloat16, and so are the weights of the values; sums are fp32.
        features: What the code may use.

    Returns:
        A scheduled function of q [tokens, heads, head_dim] fp32, k_cache and v_cache
        [context, kv_heads, head_dim], of int8 caches k_scales and v_scales [context, kv_heads, 1]
        fp32, past_length [1] int64, valid_length [1] int64, out [tokens, heads, head_dim] fp32.
    """
    assert heads % kv_heads == 0, f"{heads} heads do not divide over {kv_heads} kv heads"
    shape = AttentionShape(tokens, heads, kv_heads, head_dim, context, window, scale)
    cache, scales = (context, kv_heads, head_dim), (context, kv_heads, 1)
    has_scales = cache_dtype == "int8"
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        begin("attention")
        # Keyword arguments are evaluated, and so become parameters, in this order.
        operands = Operands(
            q=T.arg("q", T.buffer((tokens, heads, head_dim), "float32")),
            k_cache=T.arg("k_cache", T.buffer(cache, cache_dtype)),
            v_cache=T.arg("v_cache", T.buffer(cache, cache_dtype)),
            k_scales=T.arg("k_scales", T.buffer(scales, "float32")) if has_scales else None,
            v_scales=T.arg("v_scales", T.buffer(scales, "float32")) if has_scales else None,
            past_length=T.arg("past_length", T.buffer((1,), "int64")),
            valid_length=T.arg("valid_length", T.buffer((1,), "int64")),
            out=T.arg("out", T.buffer((tokens, heads, head_dim), "float32")),
        )
        if tokens == 1:
            emit_decode(operands, shape, features=features)
        elif has_tile_prefill(shape, cache_dtype=cache_dtype, features=features):
            emit_tile_prefill(operands, shape)
        else:
            emit_prefill(operands, shape, features=features)
    return finished(builder)
