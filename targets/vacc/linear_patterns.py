"""x . W^T of a stored [out, in], with a bias where one is added: floats, or codes with scales.

matmul(x, permute_dims(astype(W)))                                       float16
matmul(x, permute_dims(dequantize(W, scale)))                            a scale for each output
matmul(x, permute_dims(reshape(dequantize(reshape(W), reshape(scale))))) and for each group
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from tvm import relax
from tvm.ir.expr import GenericConst
from tvm.relax.dpl import DFPattern, is_op, wildcard
from tvm.relax.transform import PatternCheckContext

from targets.vacc.pattern_rows import ANOTHER, Row, either
from targets.vacc.relax_types import dtype_of, shape_of

HEAD = "lm_head"
_Storage = Literal["float", "codes", "groups"]
_CODES: Sequence[_Storage] = ("codes", "groups")


def linears() -> list[Row]:
    """The head's first: a linear is tried with its bias before without."""
    with_bias = (True, False)
    return [
        *(_linear("head", "float", has_bias=bias) for bias in with_bias),
        *(_linear("head", kind, has_bias=bias) for kind in _CODES for bias in with_bias),
        *(_linear("quantized_linear", kind, has_bias=b) for kind in _CODES for b in with_bias),
        *(_linear("linear", "float", has_bias=bias) for bias in with_bias),
    ]


def _linear(name: str, kind: _Storage, *, has_bias: bool) -> Row:
    x, weight, bias = wildcard(), wildcard(), wildcard()
    marks: dict[str, DFPattern] = {"x": x, "weight": weight}
    if kind == "float":
        wide = is_op("relax.astype")(weight)
    else:
        marks["scale"], marks["zero"] = wildcard(), wildcard()
        wide = _dequantized(marks, has_groups=kind == "groups")
    product = is_op("relax.matmul")(x, is_op("relax.permute_dims")(wide))

    def problem(context: PatternCheckContext) -> str:
        if name == "head" and not _name(context.annotated_expr["weight"]).startswith(HEAD):
            return ANOTHER
        return _problem(context, has_groups=kind == "groups")

    if not has_bias:
        return name, product, marks, problem
    marks["bias"] = bias
    return name, either("relax.add", product, bias), marks, problem


def _dequantized(marks: dict[str, DFPattern], *, has_groups: bool) -> DFPattern:
    if not has_groups:
        return is_op("relax.dequantize")(marks["weight"], marks["scale"], marks["zero"])
    codes, scales = (
        is_op("relax.reshape")(marks[name], wildcard()) for name in ("weight", "scale")
    )
    marks["flat"] = is_op("relax.dequantize")(codes, scales, marks["zero"])
    return is_op("relax.reshape")(marks["flat"], wildcard())


def _problem(context: PatternCheckContext, *, has_groups: bool) -> str:
    found = context.annotated_expr
    x, weight = found["x"], found["weight"]
    if len(shape_of(weight)) != 2 or dtype_of(x) != "float32":
        return f"it multiplies {dtype_of(x)} by {len(shape_of(weight))} axes"
    if "bias" in found and shape_of(found["bias"]) != shape_of(weight)[:1]:
        return ANOTHER
    if "bias" in found and dtype_of(found["bias"]) != "float32":
        return f"its bias is {dtype_of(found['bias'])}, the device adds float32"
    if "scale" not in found:
        wrong = dtype_of(weight)
        return "" if wrong == "float16" else f"its weight is {wrong}, the device takes float16"
    return _scale_problem(found, has_groups=has_groups)


def _scale_problem(found: Mapping[str, relax.Expr], *, has_groups: bool) -> str:
    outputs, inputs = shape_of(found["weight"])
    scales, wanted = shape_of(found["scale"]), (outputs,)
    if has_groups:
        group = shape_of(found["flat"])[-1]
        wanted = (outputs, inputs // group)
        is_cut = shape_of(found["flat"]) == (outputs * inputs // group, group)
        if not is_cut or inputs % group:
            return f"its groups are {shape_of(found['flat'])} of {shape_of(found['weight'])}"
    if dtype_of(found["weight"]) != "int8" or scales != wanted:
        return f"its scales are {scales}, the device has them for each output or group"
    if not _is_zero(found["zero"]):
        return "it has zero points, the device's int8 is symmetric"
    return ""


def _name(value: relax.Expr) -> str:
    return value.name if isinstance(value, relax.Var) else ""


def _is_zero(value: relax.Expr) -> bool:
    # TVM's stub of a constant lacks the value that it holds.
    held = getattr(value, "value", None) if isinstance(value, GenericConst) else None
    return held is not None and not held.numpy().any()
