"""Evaluate what is known at build time, and remove what does nothing.

    Concat([1], [16], [4], [8])  ->  [1, 16, 4, 8]
    CastLike(0.0, Squeeze(Shape(x)))  ->  0
    Identity(x), Slice(x, 0, INT64_MAX, step 1)  ->  x

Declines a node whose result is larger than a constant may be (1 KiB): that is a parameter's place.
Nothing changes numerically: onnx's reference evaluator computes what the runtime would.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import CONSTANT_BYTES, OPSET, Program, tidy
from passes._match import constant, replace_uses

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


def _element_types(program: Program) -> dict[str, int]:
    """Element type of every tensor, as far as ONNX infers it."""
    model = onnx.shape_inference.infer_shapes(program.model())
    graph = model.graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _as_cast(node: gs.Node, types: dict[str, int]) -> None:
    """CastLike(constant, x) -> Cast to x's type, where that is known."""
    if node.op != "CastLike" or constant(node.inputs[0]) is None:
        return
    like = node.inputs[1]
    value = constant(like)
    kind = types.get(like.name, 0)
    if value is not None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    if not kind:
        return
    node.op, node.attrs, node.inputs = "Cast", {"to": kind}, node.inputs[:1]


def _evaluate(node: gs.Node) -> list[np.ndarray]:
    """The outputs of a node whose inputs are all constants."""
    names = [f"x{index}" for index in range(len(node.inputs))]
    values = [constant(tensor) for tensor in node.inputs]
    lone = onnx.helper.make_node(
        node.op, names, [f"y{index}" for index in range(len(node.outputs))], **node.attrs
    )
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in zip(names, values, strict=True)
        if value is not None
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in lone.output]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([lone], "constant", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    results = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    return [np.asarray(result) for result in results]


def _is_foldable(node: gs.Node) -> bool:
    is_plain = not node.domain and node.op not in _NOT_FOLDED
    return is_plain and bool(node.inputs) and all(constant(t) is not None for t in node.inputs)


def fold_constants(program: Program) -> PassReport:
    """Fold in one walk from inputs to outputs; the graph is in topological order."""
    graph = program.graph
    types = _element_types(program)
    rewrites: list[str] = []
    skips: list[Skip] = []
    for node in list(graph.nodes):
        if node.op == "Identity" or _is_full_slice(node):
            replace_uses(graph, node.outputs[0], node.inputs[0])
            rewrites.append(node.name)
            continue
        _as_cast(node, types)
        if not _is_foldable(node):
            continue
        values = _evaluate(node)
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
