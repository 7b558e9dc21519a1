"""16-bit arithmetic of an ONNX model spelled in float32, for runtimes that lack it or skip it.

    Add(a, b)  ->  Cast(Add(Cast(a, float32), Cast(b, float32)), bfloat16)

onnxruntime's CPU provider has no bfloat16 kernel for Add, Sub, Mul, Neg, Sigmoid, Expand and MatMul
(1.31: NOT_IMPLEMENTED at load), and computes chains of float16 operators in float32 without
rounding in between. It does keep the Casts of a graph. Spelled so, each operator rounds its result
once, to nearest even, and a product accumulates in float32, which is what hardware does.
"""

from collections.abc import Mapping

import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# They move values about or convert them; every kernel has them in 16 bits.
_EXACT = (
    "Cast",
    "CastLike",
    "Concat",
    "DequantizeLinear",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)


def spelled_in_float32(model: ModelProto) -> ModelProto:
    """The same model with float32 arithmetic between Casts; itself where nothing is 16 bits wide.

    Functions are taken apart where something is: they may compute in the type of their inputs.
    """
    types = _element_types(model)
    if not set(_NARROW) & set(types.values()):
        return model
    plain = onnx.inliner.inline_local_functions(model)
    types = _element_types(plain)
    nodes: list[NodeProto] = []
    for node in plain.graph.node:
        names = (*node.input, *node.output)
        is_narrow = any(types.get(name) in _NARROW for name in names)
        if node.op_type in _EXACT or not is_narrow:
            nodes.append(node)
        else:
            nodes += _spelled(node, types)
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _spelled(node: NodeProto, types: Mapping[str, int]) -> list[NodeProto]:
    """Casts of its narrow inputs, the node itself in float32, casts of its narrow outputs."""
    wide = NodeProto()
    wide.CopyFrom(node)
    stem = node.output[0]  # inlined nodes have no name
    before: list[NodeProto] = []
    after: list[NodeProto] = []
    for index, name in enumerate(node.input):
        if types.get(name) in _NARROW:
            wide.input[index] = f"{stem}/widened/{index}"
            before.append(_cast(name, wide.input[index], wide.input[index], TensorProto.FLOAT))
    for index, name in enumerate(node.output):
        if types.get(name) in _NARROW:
            wide.output[index] = f"{stem}/wide/{index}"
            after.append(_cast(wide.output[index], name, f"{stem}/narrow/{index}", types[name]))
    return [*before, wide, *after]


def _cast(source: str, result: str, name: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name, to=to)


def _element_types(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.output, *graph.value_info, *graph.input):
        types[value.name] = value.type.tensor_type.elem_type
    return types
