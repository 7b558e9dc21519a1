"""An exported model under random names, or with a scale put somewhere: what may not be noticed."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
import onnx

SCALE = 1.01


def scrambled(model: onnx.ModelProto, *, seed: int) -> onnx.ModelProto:
    """Every node, tensor, input and output under a random name, inputs and outputs in place."""
    generator = random.Random(seed)
    names: dict[str, str] = {"": ""}

    def renamed(name: str) -> str:
        if name not in names:
            names[name] = f"{generator.getrandbits(48):x}"
        return names[name]

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = renamed(value.name)
    for node in graph.node:
        node.name = renamed(f"node {node.name}")
        for field in (node.input, node.output):
            field[:] = [renamed(name) for name in field]
    order = list(graph.initializer)
    generator.shuffle(order)
    del graph.initializer[:]
    graph.initializer.extend(order)
    return copy


def with_scale(model: onnx.ModelProto, *, layer: int, place: str) -> onnx.ModelProto:
    """A product with 1.01 on one tensor of a layer; all that read it read the product."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor, readers = _place(copy.graph, layer, place)
    graph = copy.graph
    scale = np.array(SCALE, np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(scale, "a scale"))
    index = next(at for at, node in enumerate(graph.node) if tensor in node.output)
    product = onnx.helper.make_node("Mul", [tensor, "a scale"], ["scaled"], "a product")
    for node in readers:
        node.input[:] = ["scaled" if name == tensor else name for name in node.input]
    graph.node.insert(index + 1, product)
    return copy


def _place(graph: onnx.GraphProto, layer: int, place: str) -> tuple[str, Sequence[onnx.NodeProto]]:
    """The tensor to scale, and the nodes that read it."""
    makers = {output: node for node in graph.node for output in node.output}
    attentions = [node for node in graph.node if node.op_type in ("Softmax", "Attention")]
    attention = attentions[layer]
    pasts = [v.name for v in graph.input if len(v.type.tensor_type.shape.dim) == 4]
    key, value = (_reader(graph, pasts[2 * layer + at]) for at in (0, 1))
    sigmoid = [node for node in graph.node if node.op_type == "Sigmoid"][layer]
    is_whole = attention.op_type == "Attention"
    context = attention if is_whole else _below(graph, attention, "MatMul")
    output = _below(graph, context, "MatMul")
    up = _below(graph, _below(graph, sigmoid, "Mul"), "Mul")
    tensors = {
        "queries": attention.input[0] if is_whole else _scores(makers, attention).input[0],
        "new key": key.input[1],
        "value before the cache": makers[value.input[1]].input[0],
        "scores": attention.input[0],
        "weights": attention.output[0],
        "context": context.output[0],
        "attention's output": output.output[0],
        "residual": _below(graph, output, "Add").output[0],
        "gate": sigmoid.input[0],
        "down": _below(graph, up, "MatMul").output[0],
    }
    tensor = tensors[place]
    return tensor, [node for node in graph.node if tensor in node.input]


def _scores(makers: dict[str, onnx.NodeProto], softmax: onnx.NodeProto) -> onnx.NodeProto:
    stack = [makers[softmax.input[0]]]
    while stack[-1].op_type != "MatMul":
        stack.append(makers[stack[-1].input[0]])
    return stack[-1]


def _reader(graph: onnx.GraphProto, tensor: str) -> onnx.NodeProto:
    return _only(n for n in graph.node if tensor in n.input and n.op_type == "Concat")


def _below(graph: onnx.GraphProto, node: onnx.NodeProto, op: str) -> onnx.NodeProto:
    """The nearest node of an operator that depends on `node`."""
    reached = set(node.output)
    for other in list(graph.node)[list(graph.node).index(node) + 1 :]:
        if reached & set(other.input):
            if other.op_type == op:
                return other
            reached |= set(other.output)
    raise AssertionError(f"no {op} reads {node.name}")


def _only(nodes: Iterable[onnx.NodeProto]) -> onnx.NodeProto:
    (node,) = nodes
    return node
