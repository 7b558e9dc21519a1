"""A composite function -> its tile kernel, and which of its parameters the kernel takes."""

from collections.abc import Callable, Mapping
from math import prod

from tvm import relax

from targets.vacc.device import DeviceProfile
from targets.vacc.kernels.attention import AttentionShape, attention
from targets.vacc.kernels.cache import cache_update
from targets.vacc.kernels.linear import LinearShape, linear
from targets.vacc.kernels.rotary import angles, rotary
from targets.vacc.kernels.rows import binary, rms_norm, rounded_tokens
from targets.vacc.lowering import UNNAMED, Composite, Lowering
from targets.vacc.moves import move, table_rows
from targets.vacc.patterns import PREFIX
from targets.vacc.relax_types import (
    TILE_DTYPES,
    Body,
    call_of,
    dtype_of,
    op_name,
)


def lowering(function: relax.Function, dtypes: tuple[str, ...], profile: DeviceProfile) -> Lowering:
    """The kernel of a composite.

    Args:
        function: With the attribute `Composite`.
        dtypes: What its arguments are in the device's memory.
        profile: The device.
    """
    name = str(function.attrs["Composite"]).removeprefix(PREFIX)
    facts = {key: str(value) for key, value in function.attrs.items()}
    return _LOWERINGS[name](Composite(name, Body(function), facts, dtypes, profile))


def _linear(composite: Composite) -> Lowering:
    body = composite.body
    product = body.find("relax.matmul")
    assert product is not None, "a linear holds a product"
    x = body.param(product.args[0])
    through = ("relax.permute_dims", "relax.astype", "relax.dequantize", "relax.reshape")
    weight = body.param(product.args[1], *through)
    arguments = [x, weight]
    dequantized, added = body.find("relax.dequantize"), body.find("relax.add")
    group = 0
    if dequantized is not None:
        scale = body.param(dequantized.args[1], "relax.reshape")
        arguments.append(scale)
        if len(composite.shape(scale)) == 2:
            group = composite.shape(weight)[1] // composite.shape(scale)[1]
    if added is not None:
        (bias,) = (v for v in added.args if op_name(body.behind(v)) != "relax.matmul")
        arguments.append(body.param(bias))
    outputs, inputs = composite.shape(weight)
    shape = LinearShape(
        rows=prod(composite.shape(x)[:-1]),
        inputs=inputs,
        outputs=outputs,
        weight_dtype=composite.dtypes[weight],
        group=group,
        has_bias=added is not None,
        result="f32" if composite.name == "head" else "f16",
    )
    kernel = linear(shape, composite.profile, name=UNNAMED, composite=composite.name)
    return Lowering(kernel, tuple(arguments))


def _rms_norm(composite: Composite) -> Lowering:
    call = composite.body.find("relax.nn.rms_norm")
    assert call is not None, "an RMS norm is one operator"
    x, weight = (composite.body.param(value) for value in call.args)
    *rows, width = composite.shape(x)
    kernel = rms_norm(
        prod(rows),
        width,
        epsilon=float(getattr(call.attrs, "epsilon")),  # noqa: B009 - TVM's stub lacks it
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (x, weight))


def _rotary(composite: Composite) -> Lowering:
    body = composite.body
    turned = body.find("relax.permute_dims")
    half = body.find("relax.concat")
    assert half is not None, "a rotary embedding turns halves"
    negated = call_of(body.behind(_tuple(body, half.args[0]).fields[0]))
    x = call_of(body.behind(negated.args[0])).args[0]
    source = body.param(x, "relax.permute_dims")
    crossed = next(
        c for c in body.calls if op_name(c) == "relax.multiply" and _reads(body, c, half)
    )
    straight = next(
        c for c in body.calls if op_name(c) == "relax.multiply" and not _reads(body, c, half)
    )
    sin = _other(body, crossed, half)
    cos = next(i for i in _params_of(body, straight) if i != source)
    _, heads, tokens, width = composite.result
    kernel = rotary(
        heads,
        tokens,
        width=width,
        is_by_token=turned is not None,
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (source, cos, sin))


def _tuple(body: Body, value: relax.Expr) -> relax.Tuple:
    found = body.behind(value)
    assert isinstance(found, relax.Tuple), f"{found} is no tuple"
    return found


def _reads(body: Body, call: relax.Call, value: relax.Call) -> bool:
    return any(body.behind(argument).same_as(value) for argument in call.args)


def _params_of(body: Body, call: relax.Call) -> list[int]:
    return [body.param(argument, "relax.permute_dims") for argument in call.args]


def _other(body: Body, call: relax.Call, value: relax.Call) -> int:
    return next(body.param(one) for one in call.args if not body.behind(one).same_as(value))


def _angles(composite: Composite) -> Lowering:
    body = composite.body
    product = body.find("relax.multiply")
    assert product is not None, "angles are products"
    sides = [(value, op_name(body.behind(value)) == "relax.astype") for value in product.args]
    positions = next(body.param(value, "relax.astype") for value, is_cast in sides if is_cast)
    frequencies = next(body.param(value) for value, is_cast in sides if not is_cast)
    kernel = angles(
        prod(composite.shape(positions)),
        prod(composite.shape(frequencies)),
        op="cosine" if body.find("relax.cos") is not None else "sine",
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (positions, frequencies))


def _silu_mul(composite: Composite) -> Lowering:
    sigmoid = composite.body.find("relax.sigmoid")
    assert sigmoid is not None, "silu holds a sigmoid"
    gate = composite.body.param(sigmoid.args[0])
    return _binary(composite, "silu_mul", (gate, 1 - gate))


def _add(composite: Composite) -> Lowering:
    call = composite.body.find("relax.add")
    assert call is not None, "a sum is one operator"
    first, second = (composite.body.param(value) for value in call.args)
    return _binary(composite, "add", (first, second))


def _binary(composite: Composite, op: str, arguments: tuple[int, int]) -> Lowering:
    *rows, width = composite.result
    kernel = binary(
        prod(rows),
        width,
        op=op,
        composite=composite.name,
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, arguments)


def _attention(composite: Composite) -> Lowering:
    _, heads, tokens, width = composite.shape(0)
    context, kv_heads, _ = composite.shape(1)
    shape = AttentionShape(
        heads=heads,
        kv_heads=kv_heads,
        tokens=tokens,
        width=width,
        context=context,
        scale=float(composite.facts["scale"]),
        window=int(composite.facts["window"]),
        is_int8=composite.dtypes[1] == "i8",
    )
    arguments = (0, 1, 5, 2, 6, 3, 4) if shape.is_int8 else (0, 1, 2, 3, 4)
    return Lowering(attention(shape, composite.profile, name=UNNAMED), arguments)


def _cache_update(composite: Composite) -> Lowering:
    """(cache, rows, past, valid), and for int8 the cache of scales behind them."""
    context, heads, width = composite.shape(0)
    is_int8 = composite.dtypes[0] == "i8"
    kernel = cache_update(
        prod(composite.shape(1)) // (heads * width),
        heads,
        width=width,
        context=context,
        is_by_head=composite.facts["by_head"] == "1",
        is_int8=is_int8,
        profile=composite.profile,
        name=UNNAMED,
    )
    return Lowering(kernel, (1, 2, 3), written=(0, 4) if is_int8 else (0,))


def _cache_scales(_composite: Composite) -> Lowering:
    """(scales, codes): the scales that the update of the codes has written."""
    return Lowering(None, (0,), written=(0,))


def _rounded_tokens(composite: Composite) -> Lowering:
    *rows, width = composite.shape(0)
    kernel = rounded_tokens(prod(rows), width, profile=composite.profile, name=UNNAMED)
    return Lowering(kernel, (0,))


def _all_reduce(composite: Composite) -> Lowering:
    return Lowering(None, (0,), collective="all_reduce", ways=int(composite.facts["ways"]))


def _all_gather(composite: Composite) -> Lowering:
    return Lowering(None, (0,), collective="all_gather", ways=int(composite.facts["ways"]))


_LOWERINGS: Mapping[str, Callable[[Composite], Lowering]] = {
    "linear": _linear,
    "quantized_linear": _linear,
    "head": _linear,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "angles": _angles,
    "silu_mul": _silu_mul,
    "add": _add,
    "embedding": table_rows,
    "move": move,
    "attention": _attention,
    "cache_update": _cache_update,
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "cache_scales": _cache_scales,
    "rounded_tokens": _rounded_tokens,
}


def device_dtype(value: relax.Expr, *, is_stored: bool) -> str:
    """What an argument from the host is in memory: activations are narrowed to float16."""
    found = TILE_DTYPES[dtype_of(value)]
    return "f16" if found == "f32" and not is_stored else found
