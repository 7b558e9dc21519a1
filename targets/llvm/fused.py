"""The fused operators that this target takes whole, each as a call to one of its kernels."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

from tvm import relax
from tvm.ir import GlobalVar

from compiler.relax import AttributeValue, FusedConverter
from compiler.relax.cache_writes import QUANTIZED_CACHE_UPDATE
from targets.llvm.features import CpuFeatures
from targets.llvm.kernel_calls import add_kernel, dtype_of, static_shape, tensor_type
from targets.llvm.kernels.attention import attention
from targets.llvm.kernels.attention_shape import AttentionShape
from targets.llvm.kernels.cache_update import cache_update
from targets.llvm.kernels.quantize_tokens import quantize_tokens
from targets.llvm.kernels.quantized_cache_update import quantized_cache_update
from targets.llvm.kernels.rms_norm import rms_norm
from targets.llvm.kernels.rotary import rotary
from targets.llvm.kernels.silu_mul import silu_mul
from targets.llvm.kernels.tile_attention import has_tile_prefill
from targets.llvm.row_kernels import RowKernels
from targets.llvm.stored_operands import is_call

Attributes = Mapping[str, AttributeValue]


def _bound(builder: relax.BlockBuilder, value: relax.Expr) -> relax.Var:
    return value if isinstance(value, relax.Var) else builder.emit(value)


def fused_converters(kernels: RowKernels) -> dict[str, FusedConverter]:
    """Operator name -> converter; kernels over rows are noted in `kernels`."""
    features = kernels.features
    return {
        "CacheUpdate": partial(_cache_update, features=features),
        "FusedAttention": partial(_attention, features=features),
        "FusedRMSNorm": partial(_rms_norm, kernels=kernels),
        "FusedRotary": partial(_rotary, kernels=kernels),
        "FusedSiluMul": partial(_silu_mul, kernels=kernels),
        "QuantizedTokens": partial(_quantized_tokens, kernels=kernels),
        QUANTIZED_CACHE_UPDATE: partial(_quantized_cache_update, features=features),
        "WidenedCache": _widened_cache,
    }


def _cache_update(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    _attributes: Attributes,
    *,
    features: CpuFeatures,
) -> relax.Expr:
    """CacheUpdate(cache, rows, past, valid): a function's parameter, written in place.

    Rows that a Cast narrows to the cache's type are taken before it: the kernel rounds alike.
    """
    cache, rows, past, valid = (_bound(builder, value) for value in inputs)
    rounded = _operands_of(builder, rows, "astype")
    if rounded is not None and dtype_of(rounded[0]) == "float32":
        rows = _bound(builder, rounded[0])
    context, heads, head_dim = static_shape(cache)
    kernel = cache_update(
        static_shape(rows)[0],
        heads,
        head_dim=head_dim,
        context=context,
        cache_dtype=dtype_of(cache),
        rows_dtype=dtype_of(rows),
        features=features,
    )
    name = add_kernel(builder, kernel, "cache_update")
    return relax.call_tir_inplace(
        name, [cache, rows, past, valid], inplace_indices=0, out_ty=tensor_type(cache)
    )


def _quantized_cache_update(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    _attributes: Attributes,
    *,
    features: CpuFeatures,
) -> relax.Expr:
    """QuantizedCacheUpdate(codes, scales, rows, past, valid): two parameters, written in place."""
    codes, scales, rows, past, valid = (_bound(builder, value) for value in inputs)
    context, heads, head_dim = static_shape(codes)
    tokens = static_shape(rows)[0]
    kernel = quantized_cache_update(
        tokens, heads, head_dim=head_dim, context=context, features=features
    )
    return relax.call_tir_inplace(
        add_kernel(builder, kernel, "quantized_cache_update"),
        [codes, scales, rows, past, valid],
        inplace_indices=[0, 1],
        out_ty=[tensor_type(codes), tensor_type(scales)],
    )


def _widened_cache(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """WidenedCache(codes, scales) by TVM's own operators, which `_stored` looks behind."""
    codes, scales = (_bound(builder, value) for value in inputs)
    return relax.op.multiply(builder.emit(relax.op.astype(codes, "float32")), scales)


def _operands_of(
    builder: relax.BlockBuilder, value: relax.Expr, operator: str
) -> Sequence[relax.Expr] | None:
    """What `value` is made of, where that operator of Relax makes it."""
    made = builder.lookup_binding(value) if isinstance(value, relax.Var) else value
    return list(made.args) if is_call(made, operator) else None


def _stored(builder: relax.BlockBuilder, cache: relax.Expr) -> tuple[relax.Expr, ...]:
    """A cache as it is stored: the tensor that is widened to `cache`, and int8's scales.

    The kernel widens by itself, so that the widened cache is never made.
    """
    product = _operands_of(builder, cache, "multiply")
    if product is not None:
        codes = _operands_of(builder, product[0], "astype")
        if codes is not None and dtype_of(codes[0]) == "int8":
            return codes[0], product[1]
    narrow = _operands_of(builder, cache, "astype")
    if narrow is not None and dtype_of(narrow[0]) in ("float16", "bfloat16"):
        return (narrow[0],)
    return (cache,)


def _before_rounding(builder: relax.BlockBuilder, value: relax.Expr) -> relax.Expr:
    """fp32 that is rounded to bfloat16 and widened again: a kernel that rounds takes it before."""
    narrow = _operands_of(builder, value, "astype")
    if narrow is None or dtype_of(narrow[0]) != "bfloat16":
        return value
    wide = _operands_of(builder, narrow[0], "astype")
    return value if wide is None or dtype_of(wide[0]) != "float32" else wide[0]


def _attention(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    attributes: Attributes,
    *,
    features: CpuFeatures,
) -> relax.Expr:
    """FusedAttention(q[1, H, T, d], keys, values, past, valid) -> [1, T, H * d]."""
    q, keys, values, past, valid = (_bound(builder, value) for value in inputs)
    (keys, *k_scales), (values, *v_scales) = (_stored(builder, one) for one in (keys, values))
    _, heads, tokens, head_dim = static_shape(q)
    context, kv_heads, _ = static_shape(keys)
    scale, window = attributes["scale"], attributes["window"]
    assert isinstance(scale, float), f"scale is {scale!r}"
    assert isinstance(window, int), f"window is {window!r}"
    if has_tile_prefill(
        AttentionShape(tokens, heads, kv_heads, head_dim, context, window, scale),
        cache_dtype=dtype_of(keys),
        features=features,
    ):
        q = _before_rounding(builder, q)
    kernel = attention(
        tokens,
        heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        window=window,
        scale=scale,
        cache_dtype=dtype_of(keys),
        features=features,
    )
    name = add_kernel(builder, kernel, "attention")
    rows = builder.emit(relax.op.reshape(by_token(builder, q), [tokens, heads, head_dim]))
    out = builder.emit(
        relax.call_tir(
            name,
            [rows, keys, values, *k_scales, *v_scales, past, valid],
            out_ty=relax.TensorType([tokens, heads, head_dim], "float32"),
        )
    )
    return relax.op.reshape(out, [1, tokens, heads * head_dim])


def _rms_norm(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    attributes: Attributes,
    *,
    kernels: RowKernels,
) -> relax.Expr:
    """FusedRMSNorm(x[.., H], weight[H]) over rows."""
    x, weight = (_bound(builder, value) for value in inputs)
    *batch, hidden = static_shape(x)
    epsilon = attributes["epsilon"]
    assert isinstance(epsilon, float), f"epsilon is {epsilon!r}"
    build = partial(rms_norm, prod(batch), hidden, epsilon=epsilon, features=kernels.features)
    name = kernels.add(builder, build, "rms_norm")
    return _by_rows(builder, name, [x], [weight])


def _rotary(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    attributes: Attributes,
    *,
    kernels: RowKernels,
) -> relax.Expr:
    """FusedRotary(x[1, H, T, d], cos, sin); without an angle for each token by TVM's operators."""
    x, cos, sin = (_bound(builder, value) for value in inputs)
    _, heads, tokens, head_dim = static_shape(x)
    if any(prod(static_shape(one)) != tokens * head_dim for one in (cos, sin)):
        return _turned(builder, x, cos, sin)
    build = partial(rotary, tokens, heads, head_dim=head_dim, features=kernels.features)
    rows = builder.emit(relax.op.reshape(by_token(builder, x), [tokens, heads, head_dim]))
    angles = [builder.emit(relax.op.reshape(one, [tokens, head_dim])) for one in (cos, sin)]
    out_ty = relax.TensorType([tokens, heads, head_dim], "float32")
    name = kernels.add(builder, build, "rotary")
    turned = builder.emit(relax.call_tir(name, [rows, *angles], out_ty=out_ty))
    shaped = builder.emit(relax.op.reshape(turned, [1, tokens, heads, head_dim]))
    return relax.op.permute_dims(shaped, [0, 2, 1, 3])


def _turned(
    builder: relax.BlockBuilder, x: relax.Expr, cos: relax.Expr, sin: relax.Expr
) -> relax.Expr:
    halves = builder.emit(relax.op.split(x, 2, axis=3))
    first, second = (builder.emit(relax.TupleGetItem(halves, i)) for i in range(2))
    negated = builder.emit(relax.op.negative(second))
    turned = builder.emit(relax.op.concat([negated, first], axis=3))
    straight = builder.emit(relax.op.multiply(x, cos))
    return relax.op.add(straight, builder.emit(relax.op.multiply(turned, sin)))


def _axes(call: relax.Call) -> tuple[int, ...]:
    # TVM's reflection adds the attribute.
    axes = call.attrs.axes  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return tuple(int(axis) for axis in axes)


def by_token(builder: relax.BlockBuilder, heads: relax.Expr) -> relax.Expr:
    """[1, H, T, d] -> [1, T, H, d]: where a permutation made it, what that was made from."""
    made = builder.lookup_binding(heads) if isinstance(heads, relax.Var) else None
    if is_call(made, "permute_dims") and _axes(made) == (0, 2, 1, 3):
        return made.args[0]
    return builder.emit(relax.op.permute_dims(heads, [0, 2, 1, 3]))


def _silu_mul(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    _attributes: Attributes,
    *,
    kernels: RowKernels,
) -> relax.Expr:
    """FusedSiluMul(gate, up); where `up` broadcasts, by TVM's own operators."""
    gate, up = (_bound(builder, value) for value in inputs)
    if static_shape(gate) != static_shape(up):
        silu = relax.op.multiply(gate, relax.op.sigmoid(gate))
        return relax.op.multiply(silu, up)
    *batch, width = static_shape(gate)
    build = partial(silu_mul, prod(batch), width, features=kernels.features)
    name = kernels.add(builder, build, "silu_mul")
    return _by_rows(builder, name, [gate, up], [])


def _quantized_tokens(
    builder: relax.BlockBuilder,
    inputs: Sequence[relax.Expr],
    _attributes: Attributes,
    *,
    kernels: RowKernels,
) -> relax.Expr:
    """QuantizedTokens(x[1, T, K]): codes and scales, widened for whoever wants floats."""
    (x,) = (_bound(builder, value) for value in inputs)
    *batch, width = static_shape(x)
    rows = prod(batch)
    build = partial(quantize_tokens, rows, width, features=kernels.features)
    name = kernels.add(builder, build, "quantize_tokens")
    out_ty = [relax.TensorType([rows, width], "int8"), relax.TensorType([rows], "float32")]
    flat = builder.emit(relax.op.reshape(x, [rows, width]))
    both = builder.emit(relax.call_tir(name, [flat], out_ty=out_ty))
    codes, scales = (builder.emit(relax.TupleGetItem(both, i)) for i in range(2))
    shaped = builder.emit(relax.op.reshape(codes, [*batch, width]))
    zero = relax.const(0, "int8")
    return relax.op.dequantize(shaped, scales, zero, axis=len(batch) - 1, out_dtype="float32")


def _by_rows(
    builder: relax.BlockBuilder,
    kernel: GlobalVar,
    tensors: Sequence[relax.Expr],
    vectors: Sequence[relax.Expr],
) -> relax.Expr:
    """A kernel over [rows, width], called on tensors of more axes; the result has their shape."""
    shape = static_shape(tensors[0])
    flat = [prod(shape[:-1]), shape[-1]]
    rows = [builder.emit(relax.op.reshape(tensor, flat)) for tensor in tensors]
    out_ty = relax.TensorType(flat, "float32")
    out = builder.emit(relax.call_tir(kernel, [*rows, *vectors], out_ty=out_ty))
    return relax.op.reshape(out, shape)
