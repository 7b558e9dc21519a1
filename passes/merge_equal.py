"""What is computed twice from the same inputs is computed once.

    Where(allowed, 0, lowest) in each of 24 layers  ->  one, which all layers read

Equal are nodes of one operator with equal attributes, whose inputs are the same tensors or equal
constants. The first in the graph's order stays. Declines a node that makes an output of the graph,
which is its name, and leaves alone what is random. Exact.
"""

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import constant, replace_uses

_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform")
_PLAIN = (int, float, str, bytes, list, tuple)


def _input_key(tensor: gs.Tensor) -> object:
    value = constant(tensor)
    return id(tensor) if value is None else (value.dtype.str, value.shape, value.tobytes())


def _key(node: gs.Node) -> object | None:
    """What equal nodes have in common; None for a node that has no equal."""
    if node.op in _RANDOM or len(node.outputs) != 1:
        return None
    if not all(isinstance(value, _PLAIN) for value in node.attrs.values()):
        return None
    inputs = tuple(_input_key(tensor) for tensor in node.inputs)
    return node.domain, node.op, repr(sorted(node.attrs.items())), inputs


def merge_equal(program: Program) -> PassReport:
    """Merge in one walk from inputs to outputs; the graph is in topological order."""
    graph = program.graph
    first: dict[object, gs.Node] = {}
    rewrites: list[str] = []
    skips: list[Skip] = []
    for node in list(graph.nodes):
        key = _key(node)
        if key is None:
            continue
        kept = first.setdefault(key, node)
        if kept is node:
            continue
        if any(node.outputs[0] is output for output in graph.outputs):
            skips.append(Skip(node.name, f"equal to {kept.name}, but its output is the graph's"))
            continue
        replace_uses(graph, node.outputs[0], kept.outputs[0])
        rewrites.append(node.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class MergeEqual(Pass):
    """Equal nodes become one."""

    name: ClassVar = "merge-equal"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Merge; what is merged is named by the node that goes."""
        return merge_equal(program)
