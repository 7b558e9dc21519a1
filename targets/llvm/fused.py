"""The fused operators that this target takes whole, each as a call to one of its kernels."""

from collections.abc import Mapping, Sequence
from functools import partial

from tvm import relax

from compiler.relax import AttributeValue, FusedConverter
from targets.llvm.features import CpuFeatures
from targets.llvm.kernel_calls import add_kernel, static_shape
from targets.llvm.kernels.attention import attention
from targets.llvm.kernels.cache_update import cache_update

Attributes = Mapping[str, AttributeValue]


def _bound(builder: relax.BlockBuilder, value: relax.Expr) -> relax.Var:
    return value if isinstance(value, relax.Var) else builder.emit(value)


def fused_converters(features: CpuFeatures) -> dict[str, FusedConverter]:
    """Operator name -> converter, for this CPU level."""
    return {
        "CacheUpdate": partial(_cache_update, features=features),
        "FusedAttention": partial(_attention, features=features),
    }


def _cache_update(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    _attributes: Attributes,
    *,
    features: CpuFeatures,
) -> relax.Expr:
    """CacheUpdate(cache, rows, past, valid): the cache is a function's parameter, written in place."""
    cache, rows, past, valid = (_bound(builder, value) for value in inputs)
    context, heads, head_dim = static_shape(cache)
    kernel = cache_update(
        static_shape(rows)[0],
        heads,
        head_dim=head_dim,
        context=context,
        cache_dtype=str(cache.ty.dtype.dtype),
        features=features,
    )
    name = add_kernel(builder, kernel, "cache_update")
    return relax.call_tir_inplace(
        name, [cache, rows, past, valid], inplace_indices=0, out_ty=cache.ty
    )


def _attention(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    attributes: Attributes,
    *,
    features: CpuFeatures,
) -> relax.Expr:
    """FusedAttention(q[1, H, T, d], keys, values, past, valid) -> [1, T, H * d]."""
    q, keys, values, past, valid = (_bound(builder, value) for value in inputs)
    _, heads, tokens, head_dim = static_shape(q)
    context, kv_heads, _ = static_shape(keys)
    scale = attributes["scale"]
    assert isinstance(scale, float), f"scale is {scale!r}"
    kernel = attention(
        tokens,
        heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        scale=scale,
        cache_dtype=str(keys.ty.dtype.dtype),
        features=features,
    )
    name = add_kernel(builder, kernel, "attention")
    by_token = builder.emit(relax.op.permute_dims(q, [0, 2, 1, 3]))
    rows = builder.emit(relax.op.reshape(by_token, [tokens, heads, head_dim]))
    out = builder.emit(
        relax.call_tir(
            name,
            [rows, keys, values, past, valid],
            out_ty=relax.TensorType([tokens, heads, head_dim], "float32"),
        )
    )
    return relax.op.reshape(out, [1, tokens, heads * head_dim])
