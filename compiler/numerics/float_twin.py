"""A quantized program's float twin: the same graph, its weights and activations not rounded.

    MatMul(x, Transpose(DequantizeLinear(Wq[out, in], scale)))   ->  MatMul(x, Transpose(W))
    ... DequantizeLinear between two Reshapes, for groups        ->  MatMul(x, Transpose(W))
    Vastai::QuantizedLinearPerChannel(x, Wq[out, in], scale)     ->  MatMul(x, Transpose(W))
    Mul(Cast(Gather(Eq[V, H], ids)), scales)                     ->  Gather(E, ids)
    QuantizedTokens(x), Cast(Cast(x, bfloat16), float32)         ->  x
    UnpackedWeight(P)                                            ->  W
    Cast(W) to float32                                           ->  W
    MatMul(Gather(h, last valid), head)                          ->  MatMul(h, head)

A parameter `quantize(W)` keeps its name and layout and becomes W in float32, and so does one that
is stored in 16 bits and widened by a Cast. The logits are every token's. An int8 KV cache stays.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.errors import PassError
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import Weight, cast, unpacked
from compiler.numerics.quantized_weights import quantized_parts, widened
from compiler.numerics.rounded_activations import before_rounding

_TOKENS = "QuantizedTokens"
_LINEAR = "QuantizedLinearPerChannel"
_UNPACKED = "UnpackedWeight"
_LAYOUT = ("Cast", "Reshape", "Transpose")


@dataclass(frozen=True)
class QuantizedLinear:
    """A product with quantized weights.

    Attributes:
        parameter: Of its codes; in the twin, of its float32 weight.
        codes: The parameter's expression in the quantized program.
        product: Name of the MatMul.
        operand: The tensor that the MatMul reads in the twin, [1, tokens, in]; one name where
            several linears read the same values.
    """

    parameter: str
    codes: Weight
    product: str
    operand: str


@dataclass(frozen=True)
class FloatTwin:
    """The twin, and the linears that are quantized in what it is the twin of, in order."""

    program: Program
    linears: tuple[QuantizedLinear, ...]


def float_twin(program: Program) -> FloatTwin:
    """The float twin of a program at any point behind the quantizing pass; it is left as it was.

    Raises:
        PassError: A node reads int8 weights in a way that is not known here.
    """
    twin = program.copy()
    for node in list(twin.graph.nodes):
        if node.op == _TOKENS:
            _replace(twin, node.outputs[0], node.inputs[0])
        unrounded = before_rounding(node)
        if unrounded is not None:
            _replace(twin, node.outputs[0], unrounded)
        if node.op == _UNPACKED:
            _unpack(twin, node)
    codes: dict[str, Weight] = {}
    for parameter in list(twin.graph.inputs):
        weight = twin.weights.get(parameter.name)
        if weight is not None and quantized_parts(weight):
            codes[parameter.name] = weight
            _widen_codes(twin, parameter, weight)
    for parameter in twin.graph.inputs:
        _widen_stored(twin, parameter)
    _keep_every_token(twin)
    tidy(twin.graph)
    twin.prune_parameters()
    linears = tuple(
        QuantizedLinear(tensor.name, codes[tensor.name], product.name, product.inputs[0].name)
        for tensor in twin.graph.inputs
        if tensor.name in codes
        for product in _products(tensor)
    )
    return FloatTwin(twin, _in_order(twin, linears))


def _unpack(twin: Program, node: gs.Node) -> None:
    """Readers of an unpacked parameter read it as it was before it was packed."""
    parameter = node.inputs[0]
    _replace(twin, node.outputs[0], parameter)
    node.inputs.clear()
    weight = unpacked(twin.weights[parameter.name])
    twin.weights[parameter.name], parameter.shape = weight, list(weight.shape)


def _widen_codes(twin: Program, parameter: gs.Tensor, weight: Weight) -> None:
    readers = list(parameter.outputs)
    for node in readers:
        if node.op == _LINEAR:
            _take_float_weight(twin, node)
            continue
        found = _dequantized(node)
        if found is None:
            raise PassError(
                f"it reads the int8 {parameter.name} in a way that has no float twin",
                where=f"{node.name} ({node.op})",
                hint="let the quantizing pass write DequantizeLinear, or leave the module out",
                code="no-float-twin",
            )
        _replace(twin, found, node.outputs[0] if node.op == "Gather" else parameter)
    wide = widened(weight)
    twin.weights[parameter.name] = wide
    parameter.dtype, parameter.shape = np.dtype(np.float32), list(wide.shape)
    for node in parameter.outputs:
        if node.op == "Gather":
            node.outputs[0].dtype = np.dtype(np.float32)


def _dequantized(node: gs.Node) -> gs.Tensor | None:
    """The floats that are made of codes, which `node` reads; None where they are not found."""
    if node.op == "Gather":
        # rows -> Cast -> Mul by the rows' scales
        cast_node = _only_reader(node.outputs[0], "Cast")
        scaled = None if cast_node is None else _only_reader(cast_node.outputs[0], "Mul")
        return None if scaled is None else scaled.outputs[0]
    grouped = node.op == "Reshape"
    found = _only_reader(node.outputs[0], "DequantizeLinear") if grouped else node
    if found is None or found.op != "DequantizeLinear":
        return None
    whole = _only_reader(found.outputs[0], "Reshape") if grouped else found
    return None if whole is None else whole.outputs[0]


def _take_float_weight(twin: Program, node: gs.Node) -> None:
    """The accelerator's operator -> MatMul(x, Transpose(W))."""
    x, weight = node.inputs[:2]
    name = f"{node.name}/weight"
    turned = gs.Variable(name)
    twin.graph.nodes.append(gs.Node("Transpose", name, {"perm": [1, 0]}, [weight], [turned]))
    node.op, node.domain, node.inputs = "MatMul", None, [x, turned]


def _widen_stored(twin: Program, parameter: gs.Tensor) -> None:
    """A parameter whose one reader is a Cast to float32 is float32."""
    weight = twin.weights.get(parameter.name)
    node = None if weight is None else _only_reader(parameter, "Cast")
    if weight is None or node is None or node.attrs["to"] != onnx.TensorProto.FLOAT:
        return
    _replace(twin, node.outputs[0], parameter)
    twin.weights[parameter.name] = cast(weight, "float32")
    parameter.dtype = np.dtype(np.float32)


def _keep_every_token(twin: Program) -> None:
    """Take out what insert-strided-slice put in: the choice of one row before the head."""
    if twin.logits_of == "all":
        return
    logits = next(tensor for tensor in twin.graph.outputs if tensor.name == "logits")
    head = _made_by(logits, "MatMul", through=("Add", "Cast", "Slice"))
    kept = None if head is None else _made_by(head.inputs[0], "Gather", "Slice", through=("Cast",))
    if kept is None:
        raise PassError(
            f"the logits are those of the {twin.logits_of} token, and what chooses it is not found",
            where="lm_head",
            code="no-float-twin",
        )
    _replace(twin, kept.outputs[0], kept.inputs[0])
    logits.shape = [1, twin.tokens, logits.shape[-1]]
    twin.logits_of = "all"


def _made_by(tensor: gs.Tensor, *ops: str, through: tuple[str, ...]) -> gs.Node | None:
    """The nearest producer among `ops`, up the first inputs of nodes of `through`."""
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.op in ops:
            return node
        if node.op not in through:
            return None
        tensor = node.inputs[0]
    return None


def _products(parameter: gs.Tensor) -> list[gs.Node]:
    """The MatMuls whose right side a parameter is, whatever its layout."""
    found: list[gs.Node] = []
    for node in parameter.outputs:
        if node.op == "MatMul" and node.inputs[1] is parameter:
            found.append(node)
        elif node.op in _LAYOUT:
            found += _products(node.outputs[0])
    return found


def _in_order(twin: Program, linears: tuple[QuantizedLinear, ...]) -> tuple[QuantizedLinear, ...]:
    """By the order of computation."""
    order = {node.name: index for index, node in enumerate(twin.graph.nodes)}
    return tuple(sorted(linears, key=lambda linear: order[linear.product]))


def _only_reader(tensor: gs.Tensor, op: str) -> gs.Node | None:
    readers = list(tensor.outputs)
    return readers[0] if len(readers) == 1 and readers[0].op == op else None


def _replace(twin: Program, old: gs.Tensor, new: gs.Tensor) -> None:
    """Readers of `old`, and the graph's outputs, take `new`."""
    for node in list(old.outputs):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
    twin.graph.outputs = [new if tensor is old else tensor for tensor in twin.graph.outputs]
