"""Expressions of codes and scales, seen through transposes, joins and cuts.

    transpose(concat([quantize(A), quantize(B)]))
        parts       quantize(A), quantize(B)
        widened     transpose(concat([cast(A, float32), cast(B, float32)]))

A calibrated weight counts as what it stands for.
"""

from collections.abc import Callable

from compiler.contracts.weights import Weight, cast, concat, cut, pack, scale, transpose

# Of a weight that says nothing else: bits, and inputs that share a scale (0: all).
_PLAIN = (8, 0)


def quantized_parts(weight: Weight) -> tuple[Weight, ...]:
    """The `quantize` expressions that a parameter of codes is made of, in order; none of others."""
    if weight.op == "file":
        return quantized_parts(weight.operands[0])
    if weight.op == "quantize":
        return (weight,)
    return tuple(part for operand in weight.operands for part in quantized_parts(operand))


def widened(weight: Weight) -> Weight:
    """The float32 matrix that codes were made of, in the layout of the codes."""

    def wide(leaf: Weight) -> Weight:
        return cast(leaf.operands[0], "float32") if leaf.op == "quantize" else leaf

    return replaced(weight, wide)


def replaced(weight: Weight, leaf: Callable[[Weight], Weight]) -> Weight:
    """The expression with each `quantize`, `scale` and other leaf as `leaf` gives it."""
    match weight.op:
        case "file":
            return replaced(weight.operands[0], leaf)
        case "transpose":
            return transpose(replaced(weight.operands[0], leaf))
        case "concat":
            return concat([replaced(part, leaf) for part in weight.operands])
        case "pack":
            return pack(replaced(weight.operands[0], leaf))
        case "slice":
            axis, start, stop = (int(attribute) for attribute in weight.attributes)
            return cut(replaced(weight.operands[0], leaf), axis, start, stop)
        case _:
            return leaf(weight)


def module_of_part(part: Weight) -> str:
    """`model.layers.0.mlp.up_proj` of a `quantize` or `scale` over that module's weight."""
    return part.sources()[0].removesuffix(".weight")


def scales_of(codes: Weight) -> Weight:
    """The `scale` expression that stands beside a `quantize` one."""
    (operand,) = codes.operands
    return scale(operand, axis=0, bits=bits_of(codes), group=group_of(codes))


def bits_of(part: Weight) -> int:
    """Bits of a code of a `quantize` expression."""
    return int((part.attributes or _PLAIN)[0])


def group_of(part: Weight) -> int:
    """Inputs that share a scale, as the expression has it: 0 for all."""
    return int((part.attributes or _PLAIN)[1])
