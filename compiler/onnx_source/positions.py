"""Positions that a graph counts itself become an input, as every traced model has it.

    Cast(Unsqueeze(Range(0, T, 1) + Shape(past)[2])) -> angles
 -> Cast(Unsqueeze(position_ids)) -> angles

What the graph counts is evaluated at several lengths and must be past + [0 .. T - 1] at each; a
static cache would otherwise be counted in full.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import OPSET
from compiler.onnx_source.signature import PAST_AXIS, Signature
from compiler.onnx_source.walking import value_inputs

_PASTS = (0, 3, 11)


def positions_as_input(
    graph: gs.Graph, signature: Signature, *, tokens: int, path: Path
) -> gs.Tensor:
    """The positions' input, added where the file has none.

    Raises:
        CheckpointError: The angles are not counted from the past's length on.
    """
    if signature.positions is not None:
        return signature.positions
    casts = _angle_casts(graph)
    if not casts:
        raise _refusal(path, "no cosine of positions is computed")
    position_ids = gs.Variable("position_ids", dtype=np.int64, shape=[1, tokens])
    for cast in casts:
        shape = _checked_shape(cast, signature, tokens, path)
        if shape == (1, tokens):
            cast.inputs[0] = position_ids
            continue
        axis = gs.Constant(f"{cast.name}.axis", np.array([2], np.int64))
        turned = gs.Variable(f"{cast.name}.positions")
        graph.nodes.append(
            gs.Node("Unsqueeze", turned.name, inputs=[position_ids, axis], outputs=[turned])
        )
        cast.inputs[0] = turned
    graph.inputs.append(position_ids)
    return position_ids


def _angle_casts(graph: gs.Graph) -> list[gs.Node]:
    """The nodes above a cosine or sine where positions become floats."""
    found: dict[int, gs.Node] = {}
    stack = [node for node in graph.nodes if node.op in ("Cos", "Sin")]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.FLOAT:
            found[id(node)] = node
            continue
        stack += [n for tensor in value_inputs(node) for n in tensor.inputs]
    return list(found.values())


def _checked_shape(cast: gs.Node, signature: Signature, tokens: int, path: Path) -> tuple[int, ...]:
    """The shape of what `cast` reads, [1, T] or [1, T, 1], its values checked."""
    model = _model_of(cast.inputs[0])
    runner = ReferenceEvaluator(model)
    shapes: set[tuple[int, ...]] = set()
    for past in _PASTS:
        feeds = _feeds(model, signature, past=past, tokens=tokens)
        value = np.asarray(next(iter(runner.run(None, feeds))))
        counted = np.arange(past, past + tokens)
        if value.ndim not in (2, 3) or not np.array_equal(value.ravel(), counted):
            raise _refusal(
                path, f"node '{cast.name}' reads positions {value.ravel().tolist()} after {past}"
            )
        shapes.add(value.shape)
    (shape,) = shapes
    return shape


def _model_of(tensor: gs.Tensor) -> onnx.ModelProto:
    nodes: dict[int, gs.Node] = {}
    inputs: dict[int, gs.Tensor] = {}
    stack = [tensor]
    while stack:
        current = stack.pop()
        if isinstance(current, gs.Variable) and not current.inputs:
            inputs[id(current)] = current
        for node in current.inputs:
            if id(node) not in nodes:
                nodes[id(node)] = node
                stack += node.inputs
    graph = gs.Graph(list(nodes.values()), list(inputs.values()), [tensor], opset=OPSET).toposort()
    return gs.export_onnx(graph, do_type_check=False)


def _feeds(
    model: onnx.ModelProto, signature: Signature, *, past: int, tokens: int
) -> dict[str, np.ndarray]:
    every = (signature.ids, signature.mask, *(cache.past for cache in signature.caches))
    lengths = {PAST_AXIS: past, f"{PAST_AXIS} + {tokens}": past + tokens}
    known = {tensor.name: tensor for tensor in every}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        tensor = known[value.name]
        shape = [lengths[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        kind = np.int64 if len(shape) == 2 else np.float32
        feeds[value.name] = np.ones(shape, kind)
    return feeds


def _refusal(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"it takes no positions, and {problem}",
        where=str(path),
        hint="export it with position_ids as an input",
        code="onnx-signature",
    )
