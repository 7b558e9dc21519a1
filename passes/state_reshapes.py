"""A Reshape says what it makes: no axis is left for the runtime to work out.

    Reshape(x, [1, -1, 4, 16])  ->  Reshape(x, [1, 5, 4, 16])

Passes that come later match lengths. A Reshape is a candidate where every axis of its result is
known, which with a growing past not all are. Nothing is declined. Exact.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.program import Program, tidy
from passes._match import constant, known_shapes


def _is_stated(node: gs.Node) -> bool:
    """Whether its shape is a constant of lengths alone."""
    value = constant(node.inputs[1])
    return value is not None and bool(np.all(value > 0))


def state_reshapes(program: Program) -> PassReport:
    """State every Reshape whose result is known."""
    graph = program.graph
    rewrites: list[str] = []
    open_ones = [node for node in graph.nodes if node.op == "Reshape" and not _is_stated(node)]
    shapes = known_shapes(program) if open_ones else {}
    for node in open_ones:
        shape = shapes.get(node.outputs[0].name, (None,))
        if None in shape:
            continue
        node.inputs[1] = gs.Constant(f"{node.name}.1", np.array(shape, np.int64))
        rewrites.append(node.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites))


@dataclass(frozen=True)
class StateReshapes(Pass):
    """Reshape to known lengths, without -1, 0 or a computed shape."""

    name: ClassVar = "state-reshapes"
    after: ClassVar = ("fold-shapes", "fold-constants")
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """State each; leave what depends on the past."""
        return state_reshapes(program)
