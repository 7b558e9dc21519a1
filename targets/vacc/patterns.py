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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.relax.dpl import is_op, is_tuple, wildcard
from tvm.relax.transform import FusionPattern, PatternCheckContext

from targets.vacc.device import DeviceProfile
from targets.vacc.linear_patterns import linears
from targets.vacc.move_patterns import moves, tables
from targets.vacc.pattern_rows import ANOTHER, Check, Row, either, is_swap, last_axis_bounds
from targets.vacc.relax_types import dtype_of, op_name, shape_of

PREFIX = "vacc."


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
    table: Sequence[Row] = [
        *linears(),
        _rms_norm(),
        _rotary(is_by_token=True),
        _rotary(is_by_token=False),
        _angles("cos"),
        _angles("sin"),
        _silu_mul(),
        *tables(),
        _add(),
        *moves(),
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
    check: Check, refusals: list[Refusal], lacking: str
) -> Callable[[PatternCheckContext], bool]:
    def is_taken(context: PatternCheckContext) -> bool:
        reason = check(context)
        if not reason and lacking:
            reason = f"the profile has no composite '{lacking}'"
        if reason and reason != ANOTHER:
            call = context.matched_expr
            refusals.append(Refusal(op_name(call), shape_of(call), reason))
        return not reason

    return is_taken


def _rms_norm() -> Row:
    x, weight = wildcard(), wildcard()

    def problem(context: PatternCheckContext) -> str:
        given = context.annotated_expr
        dtypes = {dtype_of(given["x"]), dtype_of(given["weight"])}
        return "" if dtypes == {"float32"} else f"its operands are {', '.join(sorted(dtypes))}"

    return "rms_norm", is_op("relax.nn.rms_norm")(x, weight), {"x": x, "weight": weight}, problem


def _rotary(*, is_by_token: bool) -> Row:
    source, cos, sin = wildcard(), wildcard(), wildcard()
    x = is_op("relax.permute_dims")(source) if is_by_token else source
    upper = is_op("relax.strided_slice")(x, *(wildcard() for _ in range(4)))
    lower = is_op("relax.strided_slice")(x, *(wildcard() for _ in range(4)))
    turned = is_op("relax.concat")(is_tuple([is_op("relax.negative")(upper), lower]))
    straight = either("relax.multiply", x, cos)
    crossed = either("relax.multiply", turned, sin)
    marks = {"x": x, "upper": upper, "lower": lower, "cos": cos, "sin": sin}
    pattern = either("relax.add", straight, crossed)
    return "rotary", pattern, marks, lambda context: _rotary_problem(context, is_by_token)


def _rotary_problem(context: PatternCheckContext, is_by_token: bool) -> str:
    found = context.annotated_expr
    batch, *_, width = shape_of(found["x"])
    half = width // 2
    bounds = [last_axis_bounds(found[part]) for part in ("upper", "lower")]
    if bounds != [(half, width), (0, half)] or len(shape_of(found["x"])) != 4 or batch != 1:
        return "it turns no halves of [1, heads, tokens, width]"
    if shape_of(found["cos"])[-1] != width or shape_of(found["sin"])[-1] != width:
        return "its cosines and sines are not as wide as a head"
    if is_by_token and not is_swap(found["x"]):
        return "its heads are transposed otherwise"
    return ""


def _angles(op: str) -> Row:
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


def _silu_mul() -> Row:
    gate, up = wildcard(), wildcard()
    silu = either("relax.multiply", gate, is_op("relax.sigmoid")(gate))
    marks = {"a": gate, "b": up}
    return "silu_mul", either("relax.multiply", silu, up), marks, _same_shapes


def _same_shapes(context: PatternCheckContext) -> str:
    a, b = context.annotated_expr["a"], context.annotated_expr["b"]
    if dtype_of(a) != "float32" or dtype_of(b) != "float32":
        return f"its operands are {dtype_of(a)} and {dtype_of(b)}"
    same = shape_of(a) == shape_of(b)
    return "" if same else f"it broadcasts {shape_of(a)} and {shape_of(b)}"


def _add() -> Row:
    a, b = wildcard(), wildcard()
    return "add", is_op("relax.add")(a, b), {"a": a, "b": b}, _same_shapes
