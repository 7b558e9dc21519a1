"""Operators that opset 20 lacks, written out in those that it has.

    RMSNormalization(x, w)       ->  w * (x * 1 / sqrt(mean(x ** 2) + epsilon))
    RotaryEmbedding(x, cos, sin) ->  x * [cos, cos] + [-x2, x1] * [sin, sin]
    Attention(q, k, v, mask)     ->  softmax(q k^T * scale + mask) v

By their definitions (https://onnx.ai/onnx/operators), in the order that the model families here
compute. A boolean mask blocks with the lowest float, as the exporter itself spells it at opsets
without Attention: the same on every row that sees at least one column. Forms that decoders do not
use are refused, naming the node.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import tidy

# Tensor -> (ONNX element type, shape with None or a symbol for what is not known).
Kinds = dict[str, tuple[int, tuple[int | str | None, ...] | None]]
_Expansion = Callable[[gs.Graph, gs.Node, Kinds], str | None]
_LOWEST = np.float32(np.finfo(np.float32).min)


def expand(graph: gs.Graph, kinds: Kinds, path: Path) -> None:
    """Expand every such node of `graph`.

    Raises:
        CheckpointError: A node has a form that is refused.
    """
    for node in [node for node in graph.nodes if node.op in EXPANDED]:
        problem = EXPANDED[node.op](graph, node, kinds)
        if problem is not None:
            raise CheckpointError(
                f"node '{node.name}': {node.op} {problem}",
                where=str(path),
                hint="export at opset 20, which writes it out",
                code="onnx-node",
            )
        node.inputs.clear()
    tidy(graph)


def _emit(
    graph: gs.Graph,
    node: gs.Node,
    op: str,
    inputs: list[gs.Tensor | np.ndarray],
    attrs: dict[str, object] | None = None,
    *,
    output: gs.Tensor | None = None,
) -> gs.Tensor:
    """One operator of what stands for `node`."""
    name = f"{node.name}/{op}_{len(graph.nodes)}"
    tensors = [
        gs.Constant(f"{name}.{index}", value) if isinstance(value, np.ndarray) else value
        for index, value in enumerate(inputs)
    ]
    result = gs.Variable(name) if output is None else output
    graph.nodes.append(gs.Node(op, name, attrs=attrs or {}, inputs=tensors, outputs=[result]))
    return result


def _released(node: gs.Node) -> gs.Tensor:
    """The node's output, no longer its own."""
    output = node.outputs[0]
    node.outputs.clear()
    return output


def _expand_rms_normalization(graph: gs.Graph, node: gs.Node, kinds: Kinds) -> str | None:
    x, weight = node.inputs
    if node.attrs.get("axis", -1) != -1:
        return f"is over axis {node.attrs['axis']}, expected -1"
    if len(kinds[weight.name][1] or ()) != 1:
        return "has a weight that is not of one axis"
    epsilon = np.float32(node.attrs.get("epsilon", 1e-5))
    squares = _emit(graph, node, "Pow", [x, np.array(2.0, np.float32)])
    last = np.array([-1], np.int64)
    kept: dict[str, object] = {"noop_with_empty_axes": 0, "keepdims": 1}
    mean = _emit(graph, node, "ReduceMean", [squares, last], kept)
    shifted = _emit(graph, node, "Add", [mean, np.array(epsilon)])
    root = _emit(graph, node, "Sqrt", [shifted])
    inverse = _emit(graph, node, "Reciprocal", [root])
    scaled = _emit(graph, node, "Mul", [x, inverse])
    _emit(graph, node, "Mul", [weight, scaled], output=_released(node))
    return None


def _expand_rotary_embedding(graph: gs.Graph, node: gs.Node, kinds: Kinds) -> str | None:
    if len(node.inputs) != 3:
        return "looks its angles up by position"
    x, cos, sin = node.inputs
    if node.attrs.get("interleaved", 0) or node.attrs.get("rotary_embedding_dim", 0):
        return "is interleaved or partial"
    shapes = [kinds.get(tensor.name, (0, None))[1] for tensor in node.inputs]
    if any(shape is None for shape in shapes) or len(shapes[0] or ()) != 4:
        return "has inputs of unknown rank, or not of four axes"
    half = (shapes[1] or (None,))[-1]
    if not isinstance(half, int) or len(shapes[1] or ()) != 3 or len(shapes[2] or ()) != 3:
        return "has angles that are not [batch, tokens, head_dim / 2]"
    tables = []
    for table in (cos, sin):
        doubled = _emit(graph, node, "Concat", [table, table], {"axis": -1})
        tables.append(_emit(graph, node, "Unsqueeze", [doubled, np.array([1], np.int64)]))
    straight = _emit(graph, node, "Mul", [x, tables[0]])
    first, second = (
        _emit(graph, node, "Slice", [x, *(np.array([at], np.int64) for at in (*bounds, 3, 1))])
        for bounds in ((0, half), (half, np.iinfo(np.int64).max))
    )
    negated = _emit(graph, node, "Neg", [second])
    turned = _emit(graph, node, "Concat", [negated, first], {"axis": -1})
    across = _emit(graph, node, "Mul", [turned, tables[1]])
    _emit(graph, node, "Add", [straight, across], output=_released(node))
    return None


@dataclass(frozen=True)
class _Heads:
    """Query heads over key heads, and their width."""

    queries: int
    keys: int
    width: int


def _expand_attention(graph: gs.Graph, node: gs.Node, kinds: Kinds) -> str | None:
    heads = _heads(node, kinds)
    if isinstance(heads, str):
        return heads
    q, keys, values, mask = node.inputs
    scale = node.attrs.get("scale", heads.width**-0.5)
    if kinds[mask.name][0] == onnx.TensorProto.BOOL:
        bounds = [np.array(0.0, np.float32), np.array(_LOWEST)]
        mask = _emit(graph, node, "Where", [mask, *bounds])
    if heads.queries != heads.keys:
        keys, values = (_repeated(graph, node, one, heads) for one in (keys, values))
    turned = _emit(graph, node, "Transpose", [keys], {"perm": [0, 1, 3, 2]})
    products = _emit(graph, node, "MatMul", [q, turned])
    scores = _emit(graph, node, "Mul", [products, np.array(scale, np.float32)])
    masked = _emit(graph, node, "Add", [scores, mask])
    weights = _emit(graph, node, "Softmax", [masked], {"axis": -1})
    _emit(graph, node, "MatMul", [weights, values], output=_released(node))
    return None


def _heads(node: gs.Node, kinds: Kinds) -> _Heads | str:
    """The heads of an Attention; or why it is refused."""
    if len(node.inputs) != 4 or len([t for t in node.outputs if t.outputs]) > 1:
        return "keeps a cache of its own, or has no mask"
    if node.attrs.get("softcap", 0.0) or node.attrs.get("is_causal", 0):
        return "caps its scores, or is causal without a mask"
    if node.inputs[3].name not in kinds:
        return "has a mask of unknown type"
    found: list[tuple[int, int]] = []
    for tensor in node.inputs[:3]:
        shape = kinds.get(tensor.name, (0, None))[1]
        if shape is None or len(shape) != 4:
            return f"reads '{tensor.name}', which is not of four axes"
        count, width = shape[1], shape[3]
        if not isinstance(count, int) or not isinstance(width, int):
            return f"reads '{tensor.name}', of unknown heads or width"
        found.append((count, width))
    (queries, width), (keys, _), _ = found
    if found[1] != found[2] or queries % keys:
        return f"has {queries} query heads over {keys}, or values of another width"
    return _Heads(queries, keys, width)


def _repeated(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor, heads: _Heads) -> gs.Tensor:
    """Each key or value head as often as queries share it, as models without grouping write it."""
    apart = _emit(graph, node, "Unsqueeze", [tensor, np.array([2], np.int64)])
    times = np.array([1, 1, heads.queries // heads.keys, 1, 1], np.int64)
    repeated = _emit(graph, node, "Expand", [apart, times])
    merged = np.array([1, heads.queries, -1, heads.width], np.int64)
    return _emit(graph, node, "Reshape", [repeated, merged], {"allowzero": 1})


EXPANDED: Mapping[str, _Expansion] = {
    "RMSNormalization": _expand_rms_normalization,
    "RotaryEmbedding": _expand_rotary_embedding,
    "Attention": _expand_attention,
}
