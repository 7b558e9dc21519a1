"""Angles are repeated before their cosine is taken, not after.

    Concat(Cos(f), Cos(f))  ->  Cos(Concat(f, f))

Both spell a rotary embedding's table over a whole head; the second is the canonical one. The Concat
of angles is made once for all that read it. Declines a Concat whose parts are not one and the same.
The same cosines, but for the last bit: a runtime computes the end of a row by another instruction
than its vectors, and the rows are longer now.
"""

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import add_node, module_of, produced_by


def _match(node: gs.Node) -> gs.Node | str | None:
    """The cosine or sine that `node` repeats; why it is none; None where it has nothing of it."""
    parts = [produced_by(tensor, "Cos", "Sin") for tensor in node.inputs]
    first = parts[0]
    if first is None:
        return None
    if node.attrs.get("axis") != -1:
        return f"it joins on axis {node.attrs.get('axis')}, expected -1"
    for part in parts[1:]:
        if part is None or part.op != first.op or part.inputs[0] is not first.inputs[0]:
            return f"it joins {first.name} with something else"
    return first


def widen_angles(program: Program) -> PassReport:
    """Turn every repeated cosine and sine around."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    widened: dict[tuple[int, int], gs.Tensor] = {}
    for node in [node for node in graph.nodes if node.op == "Concat"]:
        match = _match(node)
        if match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(node.name, match))
            continue
        angles, count = match.inputs[0], len(node.inputs)
        key = (id(angles), count)
        if key not in widened:
            suffix = f"_{len(widened)}" if widened else ""
            name = f"{module_of(node)}/angles{suffix}"
            widened[key] = add_node(graph, "Concat", name, [angles] * count, attrs={"axis": -1})
        node.op, node.attrs, node.inputs = match.op, {}, [widened[key]]
        rewrites.append(node.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class WidenAngles(Pass):
    """Concat(Cos(f), Cos(f)) becomes Cos(Concat(f, f)), and so for sines."""

    name: ClassVar = "widen-angles"
    contract: ClassVar = Contract.close(rtol=1e-6, atol=1e-6)

    def run(self, program: Program) -> PassReport:
        """Rewrite each; decline a Concat of different parts."""
        return widen_angles(program)
