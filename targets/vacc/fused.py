"""Fused operators of the graph that are composites as they are: no pattern need find them.

    FusedAttention, CacheUpdate, QuantizedCacheUpdate, QuantizedTokens, AllReduce, AllGather
                               ->  a call of a function with the attribute Composite
    FusedRMSNorm               ->  relax.nn.rms_norm, which a pattern takes
    QuantizedLinearPerChannel  ->  a product with dequantized codes, which a pattern takes
    WidenedCache               ->  codes times scales, which attention looks behind

TVM's MergeCompositeFunctions sees no difference between these and what a pattern has made. Where
the profile lacks a composite there is no converter, and the operator is taken apart for the host;
ranks meet on the device, whatever the profile has.
"""

from collections.abc import Mapping, Sequence

from tvm import relax
from tvm.ir import GlobalVar

from compiler.contracts.tensor_parallel import ALL_GATHER, ALL_REDUCE
from compiler.relax import AttributeValue, FusedConverter
from compiler.relax.cache_writes import QUANTIZED_CACHE_UPDATE
from targets.vacc.device import DeviceProfile
from targets.vacc.relax_types import axes_of, call_of, dtype_of, op_name, shape_of

Attributes = Mapping[str, AttributeValue]
# Both read and write the cache, which is float16 on the device: one goes with the other.
CACHED = ("attention", "cache_update")


def has_device_cache(profile: DeviceProfile) -> bool:
    """Whether caches stay on the device."""
    return all(name in profile.composites for name in CACHED)


def fused_converters(profile: DeviceProfile) -> dict[str, FusedConverter]:
    """Operator name -> converter."""
    found: dict[str, FusedConverter] = {ALL_REDUCE: _all_reduce, ALL_GATHER: _all_gather}
    if has_device_cache(profile):
        found |= {
            "CacheUpdate": _cache_update,
            QUANTIZED_CACHE_UPDATE: _quantized_cache_update,
            "WidenedCache": _widened_cache,
            "FusedAttention": _attention,
        }
    if "rms_norm" in profile.composites:
        found["FusedRMSNorm"] = _rms_norm
    if "rounded_tokens" in profile.composites:
        found["QuantizedTokens"] = _quantized_tokens
    return {**found, "QuantizedLinearPerChannel": _quantized_linear}


def _rms_norm(
    _builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], attributes: Attributes
) -> relax.Expr:
    """FusedRMSNorm(x[.., H], weight[H])."""
    x, weight = inputs
    epsilon = attributes["epsilon"]
    assert isinstance(epsilon, float), f"epsilon is {epsilon!r}"
    return relax.op.nn.rms_norm(x, weight, axes=[-1], epsilon=epsilon)


def _cache_update(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """CacheUpdate(cache, rows, past, valid)."""
    cache, rows, *lengths = (_bound(builder, value) for value in inputs)
    return _update(builder, cache, _before_cast(builder, rows, "float16"), lengths)


def _quantized_cache_update(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """QuantizedCacheUpdate(codes, scales, rows, past, valid) -> both caches.

    A composite has one result: the update writes both, and another one gives the second.
    """
    codes, scales, rows, *lengths = (_bound(builder, value) for value in inputs)
    written = builder.emit(_update(builder, codes, rows, [*lengths, scales]))
    given = [scales, written]
    behind = _composite(builder, "vacc.cache_scales", given, result=scales.ty, facts={})
    return relax.Tuple([written, builder.emit(behind)])


def _update(
    builder: relax.BlockBuilder,
    cache: relax.Var,
    rows: relax.Var,
    others: Sequence[relax.Var],
) -> relax.Call:
    """New rows into a cache; rows that were turned are taken as they were."""
    by_head = _before_turning(builder, rows)
    given = [cache, rows if by_head is None else by_head, *others]
    facts = {"by_head": int(by_head is not None)}
    return _composite(builder, "vacc.cache_update", given, result=cache.ty, facts=facts)


def _widened_cache(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """WidenedCache(codes, scales); nothing computes it where attention alone reads it."""
    codes, scales = (_bound(builder, value) for value in inputs)
    return relax.op.multiply(builder.emit(relax.op.astype(codes, "float32")), scales)


def _quantized_tokens(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """QuantizedTokens(x[1, T, K])."""
    (x,) = (_bound(builder, value) for value in inputs)
    return _composite(builder, "vacc.rounded_tokens", [x], result=x.ty, facts={})


def _quantized_linear(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], _attributes: Attributes
) -> relax.Expr:
    """QuantizedLinearPerChannel(x, weight[out, in], scale[out]); of graphs that are float32."""
    x, weight, scale = (_bound(builder, value) for value in inputs)
    zero = relax.const(0, "int8")
    wide = builder.emit(relax.op.dequantize(weight, scale, zero, axis=0, out_dtype="float32"))
    return relax.op.matmul(x, builder.emit(relax.op.permute_dims(wide, [1, 0])))


def _before_cast(builder: relax.BlockBuilder, value: relax.Var, dtype: str) -> relax.Var:
    """What a Cast to `dtype` was given; the value itself where it is none."""
    made = builder.lookup_binding(value)
    if op_name(made) != "relax.astype" or dtype_of(value) != dtype:
        return value
    return _bound(builder, call_of(made).args[0])


def _before_turning(builder: relax.BlockBuilder, rows: relax.Var) -> relax.Expr | None:
    """x[1, K, T, d] behind Reshape(Transpose(x)), which is rows[T, K, d]."""
    reshaped = builder.lookup_binding(rows)
    if op_name(reshaped) != "relax.reshape":
        return None
    turned = call_of(reshaped).args[0]
    made = builder.lookup_binding(turned) if isinstance(turned, relax.Var) else turned
    if made is None or op_name(made) != "relax.permute_dims":
        return None
    before, (tokens, heads, width) = call_of(made).args[0], shape_of(rows)
    is_swapped = axes_of(made) == (0, 2, 1, 3)
    is_same = shape_of(before) == (1, heads, tokens, width)
    return _bound(builder, before) if is_swapped and is_same else None


def _attention(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], attributes: Attributes
) -> relax.Expr:
    """FusedAttention(q[1, H, T, d], keys, values, past, valid) -> [1, T, H * d]."""
    q, keys, values, *lengths = (_bound(builder, value) for value in inputs)
    (keys, *k_scales), (values, *v_scales) = (_stored(builder, one) for one in (keys, values))
    given = [q, keys, values, *lengths, *k_scales, *v_scales]
    _, heads, tokens, width = shape_of(q)
    result = relax.TensorType([1, tokens, heads * width], "float32")
    facts = {"scale": attributes["scale"], "window": attributes["window"]}
    return _composite(builder, "vacc.attention", given, result=result, facts=facts)


def _all_reduce(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], attributes: Attributes
) -> relax.Expr:
    """AllReduce(x), of x's shape."""
    x, ways = _bound(builder, inputs[0]), attributes["ways"]
    return _composite(builder, "vacc.all_reduce", [x], result=x.ty, facts={"ways": ways})


def _all_gather(
    builder: relax.BlockBuilder, inputs: Sequence[relax.Expr], attributes: Attributes
) -> relax.Expr:
    """AllGather(x[.., n]) -> [.., ways * n]."""
    x, ways = _bound(builder, inputs[0]), attributes["ways"]
    assert isinstance(ways, int), f"ways is {ways!r}"
    *rows, width = shape_of(x)
    result = relax.TensorType([*rows, width * ways], "float32")
    return _composite(builder, "vacc.all_gather", [x], result=result, facts={"ways": ways})


def _stored(builder: relax.BlockBuilder, cache: relax.Var) -> tuple[relax.Var, ...]:
    """A cache as it is stored: the tensor that was widened to `cache`, and the scales of int8."""
    made = builder.lookup_binding(cache)
    if op_name(made) != "relax.multiply":
        return (_before_cast(builder, cache, "float32"),)
    codes, scales = (_bound(builder, value) for value in call_of(made).args)
    return _before_cast(builder, codes, "float32"), scales


def _bound(builder: relax.BlockBuilder, value: relax.Expr) -> relax.Var:
    return value if isinstance(value, relax.Var) else builder.emit(value)


def _composite(
    builder: relax.BlockBuilder,
    name: str,
    given: Sequence[relax.Var],
    *,
    result: relax.Type,
    facts: Mapping[str, AttributeValue],
) -> relax.Call:
    """A call of a composite function; its facts are attributes, as text."""
    params = [relax.Var(f"p{index}", value.ty) for index, value in enumerate(given)]
    inner = relax.BlockBuilder()
    attrs = {"Composite": name, "Primitive": True, **{k: repr(v) for k, v in facts.items()}}
    short = name.replace(".", "_")
    with inner.function(short, params, attrs=attrs):
        with inner.dataflow():
            output = inner.emit_output(relax.call_dps_packed(name, params, out_ty=result))
        inner.emit_func_output(output)
    function = inner.get()[short].without_attr("global_symbol")
    variable: GlobalVar = builder.add_func(function, short)
    return relax.Call(variable, list(given))
