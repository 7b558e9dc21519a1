"""One node for the rotary embedding of queries, and one for that of keys.

    Add(Mul(x, cos), Mul(Concat(Neg(x[..., h:]), x[..., :h]), sin))  ->  FusedRotary(x, cos, sin)

Products and the sum are taken in either order. The rotated tensor keeps its name, which is the tap
point q_rot or k_rot. Declines, with the reason, a half turn `Concat(Neg(Slice), Slice)` of other
axes or bounds, or one that is not multiplied and added to the other product of the same tensor. The
ONNX function holds the same operators in the same order.
"""

import itertools
from collections.abc import Set
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, constant, module_of, only_reader, operands, produced_by

INT64_MAX = np.iinfo(np.int64).max
FUSED_ROTARY = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    FusedRotary <half> (x, cos, sin) => (rotated)
    {{
        start = Constant <value_ints: ints = [0]> ()
        middle = Constant <value_ints: ints = @half> ()
        end = Constant <value_ints: ints = [{INT64_MAX}]> ()
        last_axis = Constant <value_ints: ints = [-1]> ()
        second = Slice (x, middle, end, last_axis)
        first = Slice (x, start, middle, last_axis)
        negated = Neg (second)
        turned = Concat <axis: int = -1> (negated, first)
        straight = Mul (x, cos)
        crossed = Mul (turned, sin)
        rotated = Add (straight, crossed)
    }}
    """
)


@dataclass(frozen=True)
class _Rotary:
    """One matched embedding."""

    x: gs.Tensor
    cos: gs.Tensor
    sin: gs.Tensor
    half: int
    last: gs.Node


def _rank(tensor: gs.Tensor) -> int | None:
    made = produced_by(tensor, "Transpose")
    perm = made.attrs.get("perm") if made is not None else None
    if perm is not None:
        return len(perm)
    return len(tensor.shape) if tensor.shape is not None else None


def _bounds(node: gs.Node, rank: int | None) -> tuple[int, int] | str:
    """(start, end) of a Slice of the last axis with step 1."""
    values = [constant(tensor) for tensor in node.inputs[1:]]
    if len(values) < 3 or any(value is None or value.size != 1 for value in values):
        return f"{node.name} is not of one axis with constant bounds"
    start, end, axis, *step = (int(value.item()) for value in values if value is not None)
    if axis != -1 and axis + 1 != rank:
        return f"{node.name} is along axis {axis}, expected the last"
    if step not in ([], [1]):
        return f"{node.name} takes every entry number {step[0]}"
    return start, end


def _half(turned: gs.Node, x: gs.Tensor, second: gs.Node, first: gs.Node) -> int | str:
    """Half the width of x, as Concat(Neg(x[..., half:]), x[..., :half]) has it."""
    rank = _rank(x)
    axis = turned.attrs["axis"]
    if axis != -1 and axis + 1 != rank:
        return f"it joins on axis {axis}, expected the last"
    upper, lower = _bounds(second, rank), _bounds(first, rank)
    if isinstance(upper, str) or isinstance(lower, str):
        return upper if isinstance(upper, str) else str(lower)
    half = upper[0]
    if half < 1 or upper[1] not in (2 * half, INT64_MAX) or lower != (0, half):
        spelled = f"{upper[0]}:{upper[1]} and {lower[0]}:{lower[1]}"
        return f"it joins the entries {spelled} of {x.name}, expected its halves"
    return half


def _match(turned: gs.Node) -> _Rotary | str | None:
    """None where the node is no half turn at all."""
    negated = produced_by(turned.inputs[0], "Neg")
    second = produced_by(negated.inputs[0], "Slice") if negated is not None else None
    first = produced_by(turned.inputs[-1], "Slice")
    if second is None or first is None or len(turned.inputs) != 2:
        return None
    x = second.inputs[0]
    if first.inputs[0] is not x:
        return f"it joins parts of {x.name} and {first.inputs[0].name}"
    half = _half(turned, x, second, first)
    if isinstance(half, str):
        return half
    crossed = only_reader(turned.outputs[0], "Mul")
    if crossed is None:
        return "it is not read by one product with the sine"
    last = only_reader(crossed.outputs[0], "Add")
    if last is None:
        return f"{crossed.name} is not read by one sum"
    sin = next(other for one, other in operands(crossed) if one is turned.outputs[0])
    for one, other in operands(last):
        straight = produced_by(one, "Mul")
        if straight is None or other is not crossed.outputs[0]:
            continue
        cos = next((b for a, b in operands(straight) if a is x), None)
        if cos is not None:
            return _Rotary(x, cos, sin, half, last)
    return f"{last.name} does not add the product of {x.name} and the cosine"


def _free_name(stem: str, taken: Set[str]) -> str:
    """`stem`, `stem_1`, ...: queries and keys are rotated in one module."""
    names = (stem if count == 0 else f"{stem}_{count}" for count in itertools.count())
    return next(name for name in names if name not in taken)


def fuse_rotary(program: Program) -> PassReport:
    """Fuse every half turn that is a rotary embedding's."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    taken = {node.name for node in graph.nodes}
    for turned in [node for node in graph.nodes if node.op == "Concat"]:
        match = _match(turned)
        if match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(turned.name, match))
            continue
        name = _free_name(f"{module_of(match.last)}/FusedRotary", taken)
        taken.add(name)
        output = match.last.outputs[0]
        match.last.outputs.clear()
        inputs = [match.x, match.cos, match.sin]
        attrs: dict[str, object] = {"half": [match.half]}
        add_node(graph, "FusedRotary", name, inputs, attrs=attrs, is_fused=True, output=output)
        rewrites.append(name)
    if rewrites:
        program.functions[FUSED_ROTARY.name] = FUSED_ROTARY
    tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseRotary(Pass):
    """x * cos + half_turn(x) * sin becomes one FusedRotary, for queries and for keys."""

    name: ClassVar = "fuse-rotary"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Fuse each rotary embedding; decline what only looks like one."""
        return fuse_rotary(program)
