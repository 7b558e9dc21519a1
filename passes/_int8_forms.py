"""How a graph spells int8: weights with scales, embedding tables, and activations by token.

    linear       MatMul(x, Transpose(DequantizeLinear(Wq[out, in], scale[out], axis 0)))
    of groups    MatMul(x, Transpose(Reshape(DequantizeLinear(Reshape(Wq -> [out * G, g]),
                                                              Reshape(scale[out, G]), axis 0))))
    accelerator  Vastai::QuantizedLinearPerChannel(x, Wq[out, in], scale[out])
    table        Mul(Cast(Gather(Eq[V, H], ids)), Unsqueeze(Gather(scale[V], ids), -1))
    activations  x -> QuantizedTokens(x), each token to int8 by its own scale and back

A weight is laid out as the checkpoint's, so that a table and a linear tied to it are one tensor.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program
from compiler.contracts.weights import Weight, quantize, scale
from passes._match import add_node, module_of, replace_uses

VASTAI_DOMAIN = "Vastai"
QUANTIZED_LINEAR = onnx.parser.parse_function(
    f"""
    <domain: "{VASTAI_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedLinearPerChannel (x, weight, scale) => (y)
    {{
        wide = DequantizeLinear <axis: int = 0> (weight, scale)
        typed = CastLike (wide, x)
        turned = Transpose <perm: ints = [1, 0]> (typed)
        y = MatMul (x, turned)
    }}
    """
)
# absmax / 127 of each token of x[1, T, K]; 1 where that is below float32's smallest normal number.
QUANTIZED_TOKENS = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedTokens (x) => (y)
    {{
        last_axis = Constant <value_ints: ints = [-1]> ()
        magnitudes = Abs (x)
        largest = ReduceMax <keepdims: int = 0> (magnitudes, last_axis)
        by_token = Reshape (largest, last_axis)
        steps = Constant <value_float: float = 127.0> ()
        scaled = Div (by_token, steps)
        normal = Constant <value_float: float = {float(np.finfo(np.float32).tiny)!r}> ()
        is_small = Less (scaled, normal)
        one = Constant <value_float: float = 1.0> ()
        scale = Where (is_small, one, scaled)
        tokens = Shape (scale)
        zero = ConstantOfShape <value: tensor = int8[1] {{0}}> (tokens)
        codes = QuantizeLinear <axis: int = 1> (x, scale, zero)
        y = DequantizeLinear <axis: int = 1> (codes, scale, zero)
    }}
    """
)
_FLOATS = {
    "float32": int(onnx.TensorProto.FLOAT),
    "float16": int(onnx.TensorProto.FLOAT16),
    "bfloat16": int(onnx.TensorProto.BFLOAT16),
}


@dataclass(frozen=True)
class Codes:
    """What a weight becomes: codes of `bits`, a scale for each `group` inputs; 0: for a channel."""

    bits: int
    group: int


def store_codes(program: Program, parameter: gs.Tensor, rows: Weight, codes: Codes) -> gs.Tensor:
    """Make a parameter the int8 codes of `rows`, [out, in]; its scales, a new parameter."""
    values = quantize(rows, axis=0, bits=codes.bits, group=codes.group)
    scales = scale(rows, axis=0, bits=codes.bits, group=codes.group)
    program.weights[parameter.name] = values
    parameter.shape, parameter.dtype = list(values.shape), np.dtype(np.int8)
    return program.add_parameter(f"{parameter.name}_scale", scales)


def multiply_by_codes(
    program: Program, node: gs.Node, scales: gs.Tensor, codes: Codes, *, dtype: str
) -> None:
    """MatMul(x, W) whose W became codes -> MatMul(x, Transpose(DequantizeLinear(W, scales)))."""
    graph, stored, name = program.graph, node.inputs[1], f"{module_of(node)}/DequantizeLinear"
    shape = np.array(stored.shape, np.int64)
    flat, steps = stored, scales
    if codes.group:
        groups = np.array([shape.prod() // codes.group, codes.group], np.int64)
        flat = add_node(graph, "Reshape", f"{name}/codes", [stored, groups])
        steps = add_node(graph, "Reshape", f"{name}/scales", [scales, groups[:1]])
    wide = add_node(graph, "DequantizeLinear", name, [flat, steps], attrs={"axis": 0})
    if codes.group:
        wide = add_node(graph, "Reshape", f"{name}/rows", [wide, shape])
    turn: dict[str, object] = {"perm": [1, 0]}
    turned = add_node(graph, "Transpose", f"{module_of(node)}/Transpose", [wide], attrs=turn)
    narrow = _converted(graph, f"{name}/Cast", turned, dtype)
    replace_uses(graph, stored, narrow, readers=[node])


def call_accelerator(program: Program, node: gs.Node, scales: gs.Tensor) -> None:
    """MatMul(x, W) whose W became codes -> QuantizedLinearPerChannel(x, W, scales)."""
    node.op, node.domain = QUANTIZED_LINEAR.name, VASTAI_DOMAIN
    node.inputs.append(scales)
    program.functions[QUANTIZED_LINEAR.name] = QUANTIZED_LINEAR


def widen_rows(
    program: Program, node: gs.Node, scales: gs.Tensor, codes: Codes, *, dtype: str
) -> None:
    """Gather(E, ids) whose E became codes -> its rows, each times its scales."""
    graph, path, (table, ids) = program.graph, module_of(node), node.inputs
    rows = node.outputs[0]
    readers = list(rows.outputs)
    rows.dtype = None  # as inferred
    steps = add_node(graph, "Gather", f"{path}/scale/Gather", [scales, ids], attrs={"axis": 0})
    last = np.array([-1], np.int64)
    steps = add_node(graph, "Unsqueeze", f"{path}/scale/Unsqueeze", [steps, last])
    wide = _converted(graph, f"{path}/Cast", rows, "float32", was="int8")
    if codes.group:
        grouped = np.array([0, 0, table.shape[1] // codes.group, codes.group], np.int64)
        wide = add_node(graph, "Reshape", f"{path}/groups", [wide, grouped])
    wide = add_node(graph, "Mul", f"{path}/Mul", [wide, steps])
    if codes.group:
        whole = np.array([0, 0, table.shape[1]], np.int64)
        wide = add_node(graph, "Reshape", f"{path}/rows", [wide, whole])
    narrow = _converted(graph, f"{path}/Mul/Cast", wide, dtype)
    replace_uses(graph, rows, narrow, readers=readers)


def round_tokens(program: Program, nodes: list[gs.Node], *, dtype: str) -> None:
    """Let products that read one tensor read it rounded to int8, token by token."""
    graph, x, name = program.graph, nodes[0].inputs[0], f"{module_of(nodes[0])}/QuantizedTokens"
    wide = _converted(graph, f"{name}/x", x, "float32", was=dtype)
    tokens = add_node(graph, QUANTIZED_TOKENS.name, name, [wide], is_fused=True)
    replace_uses(graph, x, _converted(graph, f"{name}/Cast", tokens, dtype), readers=nodes)
    program.functions[QUANTIZED_TOKENS.name] = QUANTIZED_TOKENS


def _converted(
    graph: gs.Graph, name: str, tensor: gs.Tensor, dtype: str, *, was: str = "float32"
) -> gs.Tensor:
    """A tensor in `dtype`, behind a Cast called `name` where it is of another."""
    if was == dtype:
        return tensor
    return add_node(graph, "Cast", name, [tensor], attrs={"to": _FLOATS[dtype]})
