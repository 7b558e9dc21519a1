"""The composites that patterns find, in TVM's pattern language; the first that matches is taken.

| composite | what it matches |
|---|---|
| head, linear, quantized_linear | x . W^T of a stored [out, in], with a bias where one is added |
| rms_norm | relax.nn.rms_norm over the last axis |
| rotary | x * cos + half_turn(x) * sin, with the transposition of its heads where there is one |
| angles | cos or sin of position * frequency, twice side by side |
| silu_mul | gate * sigmoid(gate) * up |
| embedding | rows of a table, widened |
| add | two tensors of one shape |
| move | a view, rows by index, a part of the last axis, two axes exchanged |

`attention` and `cache_update` are composites as they are imported (`targets.vacc.fused`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax.dpl import DFPattern, is_op, is_tuple, wildcard
from tvm.relax.transform import FusionPattern, PatternCheckContext

from targets.vacc.device import DeviceProfile
from targets.vacc.relax_types import (
    axes_of,
    axis_of,
    call_of,
    dtype_of,
    integers,
    op_name,
    shape_of,
    tensor_type,
)

PREFIX = "vacc."
HEAD = "lm_head"
# A pattern may match what another one is for: that is no refusal.
_ANOTHER = "it is for another pattern"

_Check = Callable[[PatternCheckContext], str]
# Composite, pattern, the parts that its check asks for, and what that says against it.
_Row = tuple[str, DFPattern, Mapping[str, DFPattern], _Check]


@dataclass(frozen=True)
class Refusal:
    """What a pattern matched and the device does not take: operator, result's shape, and why."""

    operator: str
    shape: tuple[int, ...]
    reason: str


def patterns(profile: DeviceProfile, refusals: list[Refusal]) -> list[FusionPattern]:
    """All of them, in order of priority; what the profile has no composite for is refused.

    Args:
        profile: The device.
        refusals: Filled while patterns are applied.
    """
    table: Sequence[_Row] = [
        *(_linear("head", is_head=True, has_bias=b, is_int8=q) for b in (1, 0) for q in (0, 1)),
        *(_linear("quantized_linear", has_bias=b, is_int8=True) for b in (True, False)),
        *(_linear("linear", has_bias=b) for b in (True, False)),
        _rms_norm(),
        _rotary(is_by_token=True),
        _rotary(is_by_token=False),
        _angles("cos"),
        _angles("sin"),
        _silu_mul(),
        _embedding(),
        _add(),
        *_moves(),
    ]
    return [
        FusionPattern(
            f"{PREFIX}{name}",
            pattern,
            dict(marks),
            _checked(check, refusals, "" if name in profile.composites else name),
        )
        for name, pattern, marks, check in table
    ]


def _checked(
    check: _Check, refusals: list[Refusal], lacking: str
) -> Callable[[PatternCheckContext], bool]:
    def is_taken(context: PatternCheckContext) -> bool:
        reason = check(context)
        if not reason and lacking:
            reason = f"the profile has no composite '{lacking}'"
        if reason and reason != _ANOTHER:
            call = context.matched_expr
            refusals.append(Refusal(op_name(call), shape_of(call), reason))
        return not reason

    return is_taken


def _linear(
    name: str, *, has_bias: bool | int, is_int8: bool | int = False, is_head: bool = False
) -> _Row:
    x, weight, bias = wildcard(), wildcard(), wildcard()
    marks: dict[str, DFPattern] = {"x": x, "weight": weight}
    if is_int8:
        marks["scale"], marks["zero"] = wildcard(), wildcard()
        wide = is_op("relax.dequantize")(weight, marks["scale"], marks["zero"])
    else:
        wide = is_op("relax.astype")(weight)
    product = is_op("relax.matmul")(x, is_op("relax.permute_dims")(wide))
    if not has_bias:
        return name, product, marks, lambda context: _linear_problem(context, is_head=is_head)
    marks["bias"] = bias
    summed = is_op("relax.add")(product, bias) | is_op("relax.add")(bias, product)
    return name, summed, marks, lambda context: _linear_problem(context, is_head=is_head)


def _linear_problem(context: PatternCheckContext, *, is_head: bool) -> str:
    found = context.annotated_expr
    x, weight = found["x"], found["weight"]
    if is_head and not _name(weight).startswith(HEAD):
        return _ANOTHER
    if len(shape_of(weight)) != 2 or dtype_of(x) != "float32":
        return f"it multiplies {dtype_of(x)} by {len(shape_of(weight))} axes"
    if "bias" in found and shape_of(found["bias"]) != shape_of(weight)[:1]:
        return _ANOTHER
    if "bias" in found and dtype_of(found["bias"]) != "float32":
        return f"its bias is {dtype_of(found['bias'])}, the device adds float32"
    if "scale" not in found:
        wrong = dtype_of(weight)
        return "" if wrong == "float16" else f"its weight is {wrong}, the device takes float16"
    if dtype_of(weight) != "int8" or shape_of(found["scale"]) != shape_of(weight)[:1]:
        return f"its scales are {shape_of(found['scale'])}, the device has one for each output"
    if not _is_zero(found["zero"]):
        return "it has zero points, the device's int8 is symmetric"
    return ""


def _name(value: relax.Expr) -> str:
    return value.name if isinstance(value, relax.Var) else ""


def _is_zero(value: relax.Expr) -> bool:
    # TVM's stub of a constant lacks the value that it holds.
    held = getattr(value, "value", None) if isinstance(value, GenericConst) else None
    return held is not None and not held.numpy().any()


def _rms_norm() -> _Row:
    x, weight = wildcard(), wildcard()

    def problem(context: PatternCheckContext) -> str:
        given = context.annotated_expr
        dtypes = {dtype_of(given["x"]), dtype_of(given["weight"])}
        return "" if dtypes == {"float32"} else f"its operands are {', '.join(sorted(dtypes))}"

    return "rms_norm", is_op("relax.nn.rms_norm")(x, weight), {"x": x, "weight": weight}, problem


def _either(op: str, one: DFPattern, other: DFPattern) -> DFPattern:
    return is_op(op)(one, other) | is_op(op)(other, one)


def _rotary(*, is_by_token: bool) -> _Row:
    source, cos, sin = wildcard(), wildcard(), wildcard()
    x = is_op("relax.permute_dims")(source) if is_by_token else source
    upper = is_op("relax.strided_slice")(x, *(wildcard() for _ in range(4)))
    lower = is_op("relax.strided_slice")(x, *(wildcard() for _ in range(4)))
    turned = is_op("relax.concat")(is_tuple([is_op("relax.negative")(upper), lower]))
    straight = _either("relax.multiply", x, cos)
    crossed = _either("relax.multiply", turned, sin)
    marks = {"x": x, "upper": upper, "lower": lower, "cos": cos, "sin": sin}
    pattern = _either("relax.add", straight, crossed)
    return "rotary", pattern, marks, lambda context: _rotary_problem(context, is_by_token)


def _rotary_problem(context: PatternCheckContext, is_by_token: bool) -> str:
    found = context.annotated_expr
    batch, *_, width = shape_of(found["x"])
    half = width // 2
    bounds = [_last_axis_bounds(found[part]) for part in ("upper", "lower")]
    if bounds != [(half, width), (0, half)] or len(shape_of(found["x"])) != 4 or batch != 1:
        return "it turns no halves of [1, heads, tokens, width]"
    if shape_of(found["cos"])[-1] != width or shape_of(found["sin"])[-1] != width:
        return "its cosines and sines are not as wide as a head"
    if is_by_token and not _is_swap(found["x"]):
        return "its heads are transposed otherwise"
    return ""


def _is_swap(turned: relax.Expr) -> bool:
    return op_name(turned) == "relax.permute_dims" and axes_of(turned) == (0, 2, 1, 3)


def _last_axis_bounds(call: relax.Expr) -> tuple[int, int] | None:
    """(first, end) of a slice of the last axis with step 1."""
    x, axes, first, end, step = call_of(call).args
    rank, width = len(shape_of(x)), shape_of(x)[-1]
    if [axis % rank for axis in integers(axes)] != [rank - 1] or integers(step) != (1,):
        return None
    bounds = [
        min(bound + width if bound < 0 else bound, width)
        for (bound,) in (integers(first), integers(end))
    ]
    return bounds[0], bounds[1]


def _angles(op: str) -> _Row:
    positions, frequencies = wildcard(), wildcard()
    product = is_op("relax.multiply")(is_op("relax.astype")(positions), frequencies)
    pattern = is_op(f"relax.{op}")(is_op("relax.concat")(is_tuple([product, product])))
    marks = {"positions": positions, "frequencies": frequencies}

    def problem(context: PatternCheckContext) -> str:
        found = context.annotated_expr
        if dtype_of(found["positions"]) != "int64" or dtype_of(found["frequencies"]) != "float32":
            return "it is of no positions and float32 frequencies"
        shapes = shape_of(found["positions"]), shape_of(found["frequencies"])
        is_plain = shapes[0][-1] == 1 and set(shapes[1][:-1]) <= {1}
        return "" if is_plain else f"its positions and frequencies are {shapes[0]}, {shapes[1]}"

    return "angles", pattern, marks, problem


def _silu_mul() -> _Row:
    gate, up = wildcard(), wildcard()
    silu = _either("relax.multiply", gate, is_op("relax.sigmoid")(gate))
    marks = {"a": gate, "b": up}
    return "silu_mul", _either("relax.multiply", silu, up), marks, _same_shapes


def _same_shapes(context: PatternCheckContext) -> str:
    a, b = context.annotated_expr["a"], context.annotated_expr["b"]
    if dtype_of(a) != "float32" or dtype_of(b) != "float32":
        return f"its operands are {dtype_of(a)} and {dtype_of(b)}"
    same = shape_of(a) == shape_of(b)
    return "" if same else f"it broadcasts {shape_of(a)} and {shape_of(b)}"


def _add() -> _Row:
    a, b = wildcard(), wildcard()
    return "add", is_op("relax.add")(a, b), {"a": a, "b": b}, _same_shapes


def _embedding() -> _Row:
    table, ids = wildcard(), wildcard()
    rows = is_op("relax.take")(table, ids)
    marks = {"table": table, "rows": rows}

    def problem(context: PatternCheckContext) -> str:
        found = context.annotated_expr
        is_table = dtype_of(found["table"]) == "float16" and len(shape_of(found["table"])) == 2
        return "" if is_table and axis_of(found["rows"]) == 0 else "it reads no float16 table"

    return "embedding", is_op("relax.astype")(rows), marks, problem


def _moves() -> list[_Row]:
    x = wildcard()
    four = [wildcard() for _ in range(4)]
    return [
        ("move", is_op("relax.reshape")(x, wildcard()), {"x": x}, _is_float),
        ("move", is_op("relax.expand_dims")(x), {"x": x}, _is_float),
        ("move", is_op("relax.squeeze")(x), {"x": x}, _is_float),
        ("move", is_op("relax.take")(x, wildcard()), {"x": x}, _rows_problem),
        ("move", is_op("relax.strided_slice")(x, *four), {"x": x}, _part_problem),
        ("move", is_op("relax.permute_dims")(x), {"x": x}, _turn_problem),
    ]


def _is_float(context: PatternCheckContext) -> str:
    x = context.annotated_expr["x"]
    is_float = tensor_type(x) is not None and dtype_of(x) == "float32"
    return "" if is_float else f"it moves {dtype_of(x)}"


def _rows_problem(context: PatternCheckContext) -> str:
    call, axis = call_of(context.matched_expr), axis_of(context.matched_expr)
    before = (0,) if axis is None else shape_of(call.args[0])[:axis]
    is_plain = set(before) <= {1} and dtype_of(call.args[1]) == "int64"
    return _is_float(context) or ("" if is_plain else "it takes no rows")


def _part_problem(context: PatternCheckContext) -> str:
    is_part = _last_axis_bounds(context.matched_expr) is not None
    return _is_float(context) or ("" if is_part else "it slices another axis than the last")


def _turn_problem(context: PatternCheckContext) -> str:
    is_swap = len(shape_of(context.matched_expr)) == 4 and _is_swap(context.matched_expr)
    is_plain = is_swap and shape_of(context.matched_expr)[0] == 1
    return _is_float(context) or ("" if is_plain else "it transposes other axes")
