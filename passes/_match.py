"""Matching that passes share. Tensors are compared by identity: graphsurgeon's `==` means names."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, Program, quiet_graphsurgeon

quiet_graphsurgeon()


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes `tensor`; None for inputs and constants."""
    return tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None


def produced_by(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The producer, where its operator is one of `ops`."""
    node = producer(tensor)
    return node if node is not None and node.op in ops else None


def constant(tensor: gs.Tensor) -> np.ndarray | None:
    """The value of a constant; None for anything else."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def only_reader(tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The single node that reads `tensor`, where its operator is one of `ops`."""
    if len(tensor.outputs) != 1:
        return None
    node = tensor.outputs[0]
    return node if node.op in ops else None


def operands(node: gs.Node) -> Iterator[tuple[gs.Tensor, gs.Tensor]]:
    """Both orders of a commutative node's two inputs."""
    first, second = node.inputs
    yield first, second
    yield second, first


def through(tensor: gs.Tensor, *ops: str) -> gs.Tensor:
    """Walk up through single-input layout operators (`ops`) to where the value comes from."""
    node = produced_by(tensor, *ops)
    while node is not None:
        tensor = node.inputs[0]
        node = produced_by(tensor, *ops)
    return tensor


def ancestors(*tensors: gs.Tensor) -> list[gs.Node]:
    """All nodes that `tensors` depend on, producers before readers."""
    order: list[gs.Node] = []
    seen: set[int] = set()
    stack: list[tuple[gs.Node, bool]] = [
        (node, False) for tensor in tensors for node in tensor.inputs
    ]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        stack.extend((parent, False) for source in node.inputs for parent in source.inputs)
    return order


def replace_uses(
    graph: gs.Graph, old: gs.Tensor, new: gs.Tensor, *, readers: Sequence[gs.Node] | None = None
) -> None:
    """Make the readers of `old` (all, or those given) and the graph's outputs take `new`."""
    for node in list(old.outputs if readers is None else readers):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    if readers is None:
        graph.outputs = [new if tensor is old else tensor for tensor in graph.outputs]


def add_node(
    graph: gs.Graph,
    op: str,
    name: str,
    inputs: Sequence[gs.Tensor | np.ndarray],
    *,
    attrs: dict[str, object] | None = None,
    is_fused: bool = False,
    output: gs.Tensor | None = None,
) -> gs.Tensor:
    """Append a node called `name`; arrays become its constants; returns its one output."""
    tensors = [
        gs.Constant(f"{name}.{index}", value) if isinstance(value, np.ndarray) else value
        for index, value in enumerate(inputs)
    ]
    result = gs.Variable(name) if output is None else output
    graph.nodes.append(
        gs.Node(
            op=op,
            name=name,
            attrs=attrs or {},
            inputs=tensors,
            outputs=[result],
            domain=FUSED_DOMAIN if is_fused else None,
        )
    )
    return result


# The length of each axis, None where it is not known.
Shape = tuple[int | None, ...]


def known_shapes(program: Program) -> dict[str, Shape]:
    """Shape of every tensor whose rank ONNX infers, by name."""
    model = onnx.shape_inference.infer_shapes(program.model(), data_prop=True)
    found: dict[str, Shape] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            # A length of no value is symbolic; dim_value is 0 then, as it is for a known 0.
            found[value.name] = tuple(
                axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim
            )
    return found


def stem(node: gs.Node) -> str:
    """The module path in a node's name."""
    return node.name.rpartition("/")[0]
