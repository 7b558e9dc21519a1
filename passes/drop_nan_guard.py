"""Attention weights need no guard against NaN where the mask is finite.

    s = Softmax(Add(scores, Where(allowed, 0, lowest)))
    Where(IsNaN(s), 0, s)  ->  s

A Softmax is NaN where a whole row is minus infinity, which sums with a finite mask are not.
Declines a mask that is not chosen from finite constants. Exact, for finite scores; NaN of the
scores themselves is seen again instead of being turned into zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import constant, produced_by, replace_uses, through

_LAYOUT = ("Expand", "Reshape", "Squeeze", "Unsqueeze")


def _is_finite_choice(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a Where between finite constants."""
    node = produced_by(through(tensor, *_LAYOUT), "Where")
    if node is None:
        return False
    values = [constant(given) for given in node.inputs[1:]]
    return all(value is not None and bool(np.isfinite(value).all()) for value in values)


def _match(guard: gs.Node) -> gs.Tensor | str | None:
    """The guarded weights; why the guard stays; None where `guard` is none."""
    test = produced_by(guard.inputs[0], "IsNaN")
    if test is None:
        return None
    weights, instead = guard.inputs[2], constant(guard.inputs[1])
    if test.inputs[0] is not weights or instead is None or np.any(instead):
        return f"it does not replace NaN of {test.inputs[0].name} by zero"
    softmax = produced_by(weights, "Softmax")
    if softmax is None:
        return f"{weights.name} is not made by a Softmax"
    total = produced_by(softmax.inputs[0], "Add")
    if total is None or not any(_is_finite_choice(tensor) for tensor in total.inputs):
        return f"{softmax.name} has no mask of finite constants"
    return weights


def drop_nan_guard(program: Program) -> PassReport:
    """Drop every guard that a finite mask makes needless."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    for guard in [node for node in graph.nodes if node.op == "Where"]:
        match = _match(guard)
        if match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(guard.name, match))
            continue
        replace_uses(graph, guard.outputs[0], match)
        rewrites.append(guard.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class DropNaNGuard(Pass):
    """Where(IsNaN(weights), 0, weights) becomes the weights, under a finite mask."""

    name: ClassVar = "drop-nan-guard"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Drop each; decline one that may be needed."""
        return drop_nan_guard(program)
