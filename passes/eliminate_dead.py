"""Remove what reaches no output, and layout operators that undo or repeat each other.

    nodes, parameters and functions that no output needs  ->  gone
    Cast(x) to the type that x has                        ->  x
    Cast(Cast(x, wide), type)                             ->  Cast(x, type)
    Cast(x, type), Cast(x, type)                          ->  one of them
    Transpose(Transpose(x, p), q)                         ->  x, or Transpose(x, p after q)
    Reshape(Reshape(x, a), b)                             ->  Reshape(x, b)

Declines an operator that makes an output of the graph, which is its name, and a Reshape whose shape
copies an axis (0) of the one before it. A Cast is passed over only where it loses nothing: float16,
bfloat16 to float32. Identity and what is known at build time are fold-constants'. Nothing changes
numerically.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import ancestors, constant, element_types, produced_by, replace_uses

_Type = onnx.TensorProto
# Every value of the first is a value of each of the second.
_LOSSLESS: Mapping[int, tuple[int, ...]] = {
    _Type.FLOAT16: (_Type.FLOAT, _Type.DOUBLE),
    _Type.BFLOAT16: (_Type.FLOAT, _Type.DOUBLE),
    _Type.FLOAT: (_Type.DOUBLE,),
    _Type.INT32: (_Type.INT64,),
}


@dataclass(frozen=True)
class _Shorter:
    """What a node computes with less before it; without `attrs` it is `source` itself."""

    source: gs.Tensor
    attrs: Mapping[str, object] | None = None


def _shorter_cast(
    node: gs.Node, types: Mapping[str, int], casts: dict[tuple[int, int], gs.Tensor]
) -> _Shorter | None:
    """Given the Casts before it by what they cast and to what; it joins them."""
    source, kind = node.inputs[0], node.attrs["to"]
    before = produced_by(source, "Cast")
    if before is not None:
        origin = types.get(before.inputs[0].name, 0)
        if before.attrs["to"] in _LOSSLESS.get(origin, ()):
            source = before.inputs[0]
    if types.get(source.name) == kind:
        return _Shorter(source)
    equal = casts.setdefault((id(source), kind), node.outputs[0])
    if equal is not node.outputs[0]:
        return _Shorter(equal)
    return None if source is node.inputs[0] else _Shorter(source, node.attrs)


def _shorter_transpose(node: gs.Node) -> _Shorter | None:
    before = produced_by(node.inputs[0], "Transpose")
    inner = before.attrs.get("perm") if before is not None else None
    outer = node.attrs.get("perm")
    if before is None or inner is None or outer is None:
        return None
    perm = [inner[axis] for axis in outer]
    return _Shorter(before.inputs[0], None if perm == sorted(perm) else {"perm": perm})


def _shorter_reshape(node: gs.Node) -> _Shorter | str | None:
    before, shape = produced_by(node.inputs[0], "Reshape"), constant(node.inputs[1])
    if before is None or shape is None:
        return None
    if 0 in shape and not node.attrs.get("allowzero", 0):
        return f"its shape {shape.tolist()} copies an axis of {before.name}"
    return _Shorter(before.inputs[0], node.attrs)


def _shorter(
    node: gs.Node, types: Mapping[str, int], casts: dict[tuple[int, int], gs.Tensor]
) -> _Shorter | str | None:
    match node.op:
        case "Cast":
            return _shorter_cast(node, types, casts)
        case "Transpose":
            return _shorter_transpose(node)
        case "Reshape":
            return _shorter_reshape(node)
        case _:
            return None


def _unused_functions(program: Program) -> list[str]:
    """Functions that no node calls, nor the body of one that is called."""
    wanted = [node.op for node in program.graph.nodes]
    used: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in program.functions and name not in used:
            used.add(name)
            wanted += [node.op_type for node in program.functions[name].node]
    return sorted(set(program.functions) - used)


def _remove_dead(program: Program) -> list[str]:
    """Names of the nodes, parameters and functions that are gone."""
    live = {id(node) for node in ancestors(*program.graph.outputs)}
    removed = [node.name for node in program.graph.nodes if id(node) not in live]
    tidy(program.graph)
    before = list(program.weights)
    program.prune_parameters()
    removed += [name for name in before if name not in program.weights]
    for name in _unused_functions(program):
        del program.functions[name]
        removed.append(name)
    return removed


def eliminate_dead(program: Program) -> PassReport:
    """Shorten chains in one walk from inputs to outputs, then drop what nothing needs."""
    graph = program.graph
    types = element_types(program)
    made = {id(tensor) for tensor in graph.outputs}
    casts: dict[tuple[int, int], gs.Tensor] = {}
    rewrites: list[str] = []
    skips: list[Skip] = []
    dead = _remove_dead(program)
    for node in list(graph.nodes):
        found = _shorter(node, types, casts)
        if found is None:
            continue
        if isinstance(found, str):
            skips.append(Skip(node.name, found))
        elif found.attrs is not None:
            node.inputs = [found.source, *node.inputs[1:]]
            node.attrs = dict(found.attrs)
            rewrites.append(node.name)
        elif id(node.outputs[0]) in made:
            skips.append(Skip(node.name, "its output is the graph's"))
        else:
            replace_uses(graph, node.outputs[0], found.source)
            rewrites.append(node.name)
    tidy(graph)
    return PassReport((*dead, *rewrites), tuple(skips))


@dataclass(frozen=True)
class EliminateDead(Pass):
    """What reaches no output goes, and pairs of layout operators that cancel."""

    name: ClassVar = "eliminate-dead"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Shorten, then remove; what is removed is reported by its name."""
        return eliminate_dead(program)
