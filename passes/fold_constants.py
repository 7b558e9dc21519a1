"""Evaluate what is known at build time, and remove what does nothing.

    Concat([1], [16], [4], [8])  ->  [1, 16, 4, 8]
    CastLike(0.0, Squeeze(Shape(x)))  ->  0
    Identity(x), Slice(x, 0, INT64_MAX, step 1)  ->  x

Declines a Range, which is as long as a window or a context is, a node whose result is larger than a
constant may be (1 KiB), which is a parameter's place, and an Identity that makes an output of the
graph, which is its name. Nothing changes numerically:
onnx's reference evaluator computes what the runtime would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import CONSTANT_BYTES, OPSET, Program, tidy
from passes._match import constant, element_types, replace_uses

INT64_MAX = np.iinfo(np.int64).max
# Their result is not a function of their inputs' values alone, or is random.
_NOT_FOLDED = ("Constant", "RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


def _is_full_slice(node: gs.Node) -> bool:
    if node.op != "Slice" or len(node.inputs) < 4:
        return False
    values = [constant(tensor) for tensor in node.inputs[1:]]
    if any(value is None for value in values):
        return False
    starts, ends, _, *steps = values
    return bool(
        np.all(starts == 0) and np.all(ends == INT64_MAX) and all(np.all(s == 1) for s in steps)
    )


@dataclass(frozen=True)
class _Known:
    """An operator whose inputs are all known."""

    op: str
    attrs: Mapping[str, object]
    values: Sequence[np.ndarray]


def _known(node: gs.Node, types: Mapping[str, int]) -> _Known | None:
    """What to evaluate in place of `node`; CastLike(constant, x) is a Cast to x's type."""
    if node.domain or node.op in _NOT_FOLDED or not node.inputs or any(node.subgraphs()):
        return None
    given = [constant(tensor) for tensor in node.inputs]
    values = [value for value in given if value is not None]
    if node.op == "CastLike" and given[0] is not None:
        like = given[1]
        kind = types.get(node.inputs[1].name, 0)
        if like is not None:
            kind = onnx.helper.np_dtype_to_tensor_dtype(like.dtype)
        return _Known("Cast", {"to": kind}, [given[0]]) if kind else None
    return _Known(node.op, node.attrs, values) if len(values) == len(given) else None


def _evaluate(known: _Known, outputs: int) -> list[np.ndarray]:
    """The values of its outputs, as the runtime would compute them."""
    feeds = {f"x{index}": value for index, value in enumerate(known.values)}
    lone = onnx.helper.make_node(known.op, list(feeds), [f"y{index}" for index in range(outputs)])
    attributes = sorted(known.attrs.items())
    lone.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes)
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in lone.output]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([lone], "constant", inputs, results),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]


def fold_constants(program: Program) -> PassReport:
    """Fold in one walk from inputs to outputs; the graph is in topological order."""
    graph = program.graph
    types = element_types(program)
    rewrites: list[str] = []
    skips: list[Skip] = []
    for node in list(graph.nodes):
        if node.op == "Identity" or _is_full_slice(node):
            if any(node.outputs[0] is output for output in graph.outputs):
                skips.append(Skip(node.name, "its output is the graph's"))
                continue
            replace_uses(graph, node.outputs[0], node.inputs[0])
            rewrites.append(node.name)
            continue
        known = _known(node, types)
        if known is None:
            continue
        if node.op == "Range":
            # Whether it is folded must not hang on a length: what is done to the probe, which is
            # short, must be done to the model.
            skips.append(Skip(node.name, "it is as long as a number says, and may be any length"))
            continue
        values = _evaluate(known, len(node.outputs))
        if any(value.nbytes > CONSTANT_BYTES for value in values):
            size = max(value.nbytes for value in values)
            skips.append(Skip(node.name, f"its result of {size} bytes is over {CONSTANT_BYTES}"))
            continue
        for tensor, value in zip(node.outputs, values, strict=True):
            replace_uses(graph, tensor, gs.Constant(tensor.name, value))
        rewrites.append(node.name)
    tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Evaluate nodes whose inputs are constants; drop Identity and full Slices."""

    name: ClassVar = "fold-constants"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Fold; what is folded is named by its node."""
        return fold_constants(program)
