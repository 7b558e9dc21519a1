"""Matching that passes share. Tensors are compared by identity: graphsurgeon's `==` means names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, Program, quiet_graphsurgeon
from compiler.contracts.weights import Weight, concat, transpose

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


def head_product(graph: gs.Graph, *ops: str) -> gs.Node | None:
    """The MatMul that makes the logits, behind Add, Cast and `ops`."""
    logits = next((tensor for tensor in graph.outputs if tensor.name == "logits"), None)
    return produced_by(through(logits, "Add", "Cast", *ops), "MatMul") if logits else None


def element_types(program: Program) -> dict[str, int]:
    """ONNX element type of every tensor, as far as ONNX infers it."""
    graph = onnx.shape_inference.infer_shapes(program.model()).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


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


def module_of(node: gs.Node) -> str:
    """`model.layers.3.mlp.up_proj` of `model.layers.3.mlp.up_proj/MatMul`; else the whole name.

    What stands for a node is named under it, so a name without a path must not become empty: two
    of them would clash.
    """
    return node.name.rpartition("/")[0] or node.name


def is_scale(weight: Weight) -> bool:
    """Whether it holds scales of an int8 weight, joined or not."""
    is_joined = weight.op in ("concat", "file")
    return weight.op == "scale" or (is_joined and is_scale(weight.operands[0]))


# -- linears that read one tensor, and one product in their place


@dataclass(frozen=True)
class Linear:
    """`MatMul(x, W[in, out])` with W a parameter, and the Add of its bias where there is one."""

    product: gs.Node
    weight: gs.Tensor
    total: gs.Node | None = None
    bias: gs.Tensor | None = None

    @property
    def output(self) -> gs.Tensor:
        """The product with its bias."""
        return (self.total or self.product).outputs[0]

    @property
    def width(self) -> int:
        """Number of its outputs."""
        return int(self.weight.shape[1])


def products_by_input(program: Program) -> list[list[gs.Node]]:
    """Products with a weight of the checkpoint, those of one tensor together, in graph order."""
    found: dict[int, list[gs.Node]] = {}
    for node in program.graph.nodes:
        if node.op != "MatMul":
            continue
        stored = through(node.inputs[1], "Transpose", "Cast", "DequantizeLinear")
        weight = program.weights.get(stored.name)
        if weight is not None and len(weight.shape) == 2:
            found.setdefault(id(node.inputs[0]), []).append(node)
    return list(found.values())


def match_linears(program: Program, products: Sequence[gs.Node]) -> list[Linear] | str:
    """The linears of products that read one tensor, or why they cannot become one product."""
    linears: list[Linear] = []
    for product in products:
        linear = _match_linear(program, product)
        if isinstance(linear, str):
            return linear
        linears.append(linear)
    with_bias = [linear.product.name for linear in linears if linear.bias is not None]
    if len(with_bias) not in (0, len(linears)):
        return f"of {len(linears)} products, a bias is added to {' and '.join(with_bias)} alone"
    dtypes = {program.weights[linear.weight.name].dtype for linear in linears}
    return linears if len(dtypes) == 1 else f"their weights are {' and '.join(sorted(dtypes))}"


def _match_linear(program: Program, product: gs.Node) -> Linear | str:
    weight, output = product.inputs[1], product.outputs[0]
    if weight.name not in program.weights:
        return f"the weight of {product.name} is stored otherwise than [in, out]"
    if len(weight.outputs) != 1:
        return f"{weight.name} is read by {[node.name for node in weight.outputs]}"
    sums = [
        Linear(product, weight, node, other)
        for node in output.outputs
        if node.op == "Add"
        for one, other in operands(node)
        if one is output and other.name in program.weights and other.shape == weight.shape[1:]
    ]
    if not sums:
        return Linear(product, weight)
    if len(output.outputs) != 1:
        return f"{product.name} is read by {[node.name for node in output.outputs]} beside its bias"
    if any(tensor is output for tensor in program.graph.outputs):
        return f"{product.name} makes an output without its bias"
    return sums[0]


def join_linears(program: Program, linears: Sequence[Linear], projection: str) -> str:
    """One product and one sum, split into what the linears made; the Split's name.

    The nodes are called `model.layers.3.mlp.<projection>/...`, beside the first linear where there
    is no module that holds all. The expressions are of the weights as the checkpoint holds them, so
    that packaging copies rows.
    """
    graph, weights = program.graph, program.weights
    modules = [module_of(linear.product) for linear in linears]
    parents = {module.rpartition(".")[0] for module in modules}
    module = f"{(parents.pop() if len(parents) == 1 else '') or modules[0]}.{projection}"
    parts = [transpose(weights[linear.weight.name]) for linear in linears]
    joined = program.add_parameter(f"{module}.weight", transpose(concat(parts)))
    result = add_node(graph, "MatMul", f"{module}/MatMul", [linears[0].product.inputs[0], joined])
    biases = [weights[linear.bias.name] for linear in linears if linear.bias is not None]
    if biases:
        addend = program.add_parameter(f"{module}.bias", concat(biases))
        result = add_node(graph, "Add", f"{module}/Add", [result, addend])
    outputs = [linear.output for linear in linears]
    for tensor in outputs:
        tensor.inputs.clear()
    name = f"{module}/Split"
    widths = gs.Constant(f"{name}.1", np.array([linear.width for linear in linears], np.int64))
    graph.nodes.append(
        gs.Node("Split", name, attrs={"axis": -1}, inputs=[result, widths], outputs=outputs)
    )
    return name
