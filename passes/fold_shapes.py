"""The shape of a tensor whose axes are known is a constant.

    Shape(input_ids[1, 16], start 1, end 2)  ->  [16]

An exporter's graph asks its inputs for their lengths; here the number of tokens is part of the
program. The past's length is the caller's, so a Shape that asks for it is no candidate. Declines
one that makes an output of the graph. Exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import Shape, known_shapes, replace_uses


def _asked(node: gs.Node, shapes: Mapping[str, Shape]) -> list[int] | None:
    """The lengths that a Shape asks for; None where one is not known."""
    shape = shapes.get(node.inputs[0].name)
    if shape is None:
        return None
    lengths = shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    known = [length for length in lengths if length is not None]
    return known if len(known) == len(lengths) else None


def fold_shapes(program: Program) -> PassReport:
    """Fold every Shape of known axes."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    nodes = [node for node in graph.nodes if node.op == "Shape"]
    shapes = known_shapes(program) if nodes else {}
    for node in nodes:
        lengths, output = _asked(node, shapes), node.outputs[0]
        if lengths is None:
            continue
        if any(output is made for made in graph.outputs):
            skips.append(Skip(node.name, "its output is the graph's"))
            continue
        replace_uses(graph, output, gs.Constant(output.name, np.array(lengths, np.int64)))
        rewrites.append(node.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FoldShapes(Pass):
    """Shape of known axes becomes a constant."""

    name: ClassVar = "fold-shapes"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Fold; what is folded is named by its node."""
        return fold_shapes(program)
