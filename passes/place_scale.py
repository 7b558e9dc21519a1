"""Scores are scaled once, after their product.

    Softmax(Add(MatMul(Mul(q, a), Mul(k, b)), mask))
 -> Softmax(Add(Mul(MatMul(q, k), a * b), mask))

Exporters scale queries and keys by the root each, so that fp16 does not overflow; arithmetic is
float32 here. Declines a scale that is not one number. The product is the same up to rounding of the
scales: a * b in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import add_node, constant, module_of, operands, produced_by


@dataclass(frozen=True)
class _Scaled:
    """A product of scores whose operands are `sides` times numbers, together `scale`."""

    product: gs.Node
    sides: tuple[gs.Tensor, ...]
    scale: np.ndarray


def _scores(softmax: gs.Node) -> gs.Node | None:
    """The product that a Softmax reads, directly or through the mask's sum."""
    product = produced_by(softmax.inputs[0], "MatMul")
    total = produced_by(softmax.inputs[0], "Add")
    if product is not None or total is None:
        return product
    return next((p for t in total.inputs if (p := produced_by(t, "MatMul")) is not None), None)


def _unscaled(side: gs.Tensor) -> tuple[gs.Tensor, np.ndarray] | str | None:
    """(what is scaled, by which number); why it is no number; None where nothing scales."""
    node = produced_by(side, "Mul")
    if node is None:
        return None
    for tensor, other in operands(node):
        number = constant(other)
        if number is not None:
            is_number = number.size == 1 and number.dtype == np.float32
            return (tensor, number) if is_number else f"{node.name} scales by {number.shape}"
    return None


def _match(product: gs.Node) -> _Scaled | str | None:
    sides: list[gs.Tensor] = []
    scale = np.float32(1.0)
    found = False
    for side in product.inputs:
        scaled = _unscaled(side)
        if isinstance(scaled, str):
            return scaled
        sides.append(side if scaled is None else scaled[0])
        if scaled is not None:
            found, scale = True, np.float32(scale * scaled[1].item())
    return _Scaled(product, tuple(sides), np.array(scale)) if found else None


def place_scale(program: Program) -> PassReport:
    """Move the scales of every attention's operands behind their product."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    for softmax in [node for node in graph.nodes if node.op == "Softmax"]:
        product = _scores(softmax)
        match = _match(product) if product is not None else None
        if product is None or match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(product.name, match))
            continue
        scores = product.outputs[0]
        name = f"{module_of(product)}/scale"
        bare = gs.Variable(f"{product.name}/unscaled")
        product.inputs, product.outputs = list(match.sides), [bare]
        add_node(graph, "Mul", name, [bare, match.scale], output=scores)
        rewrites.append(product.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class PlaceScale(Pass):
    """One scale of the scores, after the product of queries and keys."""

    name: ClassVar = "place-scale"
    after: ClassVar = ("restore-transpose",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        """Move each; decline a scale that is not one number."""
        return place_scale(program)
