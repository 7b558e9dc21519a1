"""Linears' weights are stored in the tiles that a matrix unit multiplies, and unpacked where read.

    MatMul(x, Transpose(Cast(W[out, in])))
 -> MatMul(x, Transpose(Cast(UnpackedWeight(P))))                                        bfloat16
    MatMul(x, Transpose(DequantizeLinear(W[out, in], scale[out], axis 0)))
 -> MatMul(x, Transpose(DequantizeLinear(UnpackedWeight(P), scale[out], axis 0)))            int8
    Gather(W, ids), where W is a linear's as well
 -> Gather(UnpackedWeight(P), ids)

P is `pack(W)` (`compiler.contracts.weights`), under the parameter's name. A target whose kernels
read tiles takes UnpackedWeight together with what reads it; for others it is a function of standard
operators, which lay the whole weight out anew at each call. An embedding that is stored once with a
head is packed with it; one by itself stays as it is.

It stands behind what joins, pads, cuts or stores weights. Declines a weight in another dtype,
int8 with scales for groups of inputs, and a product of another form, such as the accelerator's or
one that computes in 16 bits; then what is stored once with it stays as well. Exact: nothing is
computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from compiler.contracts.weights import Weight, pack
from passes._match import add_node, is_scale, module_of, only_reader, replace_uses

UNPACKED_WEIGHT = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    UnpackedWeight <outputs, inputs> (packed) => (weight)
    {{
        by_output = Transpose <perm: ints = [0, 2, 4, 1, 3, 5]> (packed)
        padded = Flatten <axis: int = 3> (by_output)
        axis = Constant <value_ints: ints = [0]> ()
        rows = Constant <value_int: int = @outputs> ()
        columns = Constant <value_int: int = @inputs> ()
        row_end = Unsqueeze (rows, axis)
        column_end = Unsqueeze (columns, axis)
        starts = Constant <value_ints: ints = [0, 0]> ()
        ends = Concat <axis: int = 0> (row_end, column_end)
        weight = Slice (padded, starts, ends)
    }}
    """
)
# What widens a weight that is stored in a dtype.
_WIDENED_BY = {"bfloat16": "Cast to float32", "int8": "DequantizeLinear by output"}
_PRODUCTS = ("MatMul", "QuantizedLinearPerChannel")


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A parameter [out, in] that can be packed.

    Attributes:
        parameter: The parameter.
        node: A product with it, or the Gather that reads it as a table.
    """

    parameter: gs.Tensor
    node: gs.Node


def _is_lookup(node: gs.Node, table: gs.Tensor) -> bool:
    return node.op == "Gather" and node.inputs[0] is table and node.attrs.get("axis", 0) == 0


def _is_widening(reader: gs.Node, dtype: str) -> bool:
    if dtype == "bfloat16":
        return reader.op == "Cast" and reader.attrs["to"] == onnx.TensorProto.FLOAT
    if reader.op != "DequantizeLinear" or reader.attrs.get("axis", 1) != 0:
        return False
    stored, scales, *zero_points = reader.inputs
    return not zero_points and list(scales.shape or ()) == list(stored.shape[:1])


def _product(reader: gs.Node, dtype: str) -> gs.Node | str:
    """The linear's product behind what reads its weight, or why there is none."""
    if dtype == "int8" and reader.op == "Reshape":
        return f"{reader.name} reads it in groups of inputs, expected a scale for each output"
    if not _is_widening(reader, dtype):
        return f"{reader.name} ({reader.op}) reads it, expected {_WIDENED_BY[dtype]}"
    turned = only_reader(reader.outputs[0], "Transpose")
    if turned is None or turned.attrs.get("perm") != [1, 0]:
        return f"{reader.name} is not read by one Transpose"
    product = only_reader(turned.outputs[0], "MatMul")
    if product is None or product.inputs[1] is not turned.outputs[0]:
        return f"{turned.name} is not the weight of one MatMul"
    return product


def _match(parameter: gs.Tensor, weight: Weight) -> _Matrix | str:
    """A linear's weight, a table, or both; else why it is not in the form that can be packed."""
    lookups = [node for node in parameter.outputs if _is_lookup(node, parameter)]
    others = [node for node in parameter.outputs if not _is_lookup(node, parameter)]
    if weight.dtype not in _WIDENED_BY:
        return f"it is {weight.dtype}, expected {' or '.join(_WIDENED_BY)}"
    products = [_product(node, weight.dtype) for node in others]
    problem = next((one for one in products if isinstance(one, str)), None)
    nodes = [one for one in (*products, *lookups) if not isinstance(one, str)]
    return problem or _Matrix(parameter, nodes[0])


def _has_product(parameter: gs.Tensor) -> bool:
    """Whether a product multiplies by a parameter, whatever stands between them."""
    pending = [parameter]
    while pending:
        tensor = pending.pop()
        for node in tensor.outputs:
            if node.op in _PRODUCTS and node.inputs[1] is tensor:
                return True
            if node.op in ("Cast", "DequantizeLinear", "Reshape", "Transpose"):
                pending += node.outputs if node.inputs[0] is tensor else ()
    return False


def _candidates(program: Program) -> list[list[gs.Tensor]]:
    """Linears' weights, each with the parameters that are stored once with it."""
    stored: dict[str, list[gs.Tensor]] = {}
    for tensor in program.graph.inputs:
        weight = program.weights.get(tensor.name)
        if weight is not None and len(weight.shape) == 2 and not is_scale(weight):
            stored.setdefault(weight.key, []).append(tensor)
    return [tensors for tensors in stored.values() if any(map(_has_product, tensors))]


def _matched(program: Program, tensors: Sequence[gs.Tensor]) -> list[_Matrix] | list[Skip]:
    """All of what is stored once, or why nothing of it."""
    found = {one.name: _match(one, program.weights[one.name]) for one in tensors}
    problems = [Skip(name, one) for name, one in found.items() if isinstance(one, str)]
    matrices = [one for one in found.values() if not isinstance(one, str)]
    if not problems:
        return matrices
    reason = f"it is stored once with {problems[0].node}, which is declined"
    return [*problems, *(Skip(one.parameter.name, reason) for one in matrices)]


def _pack(program: Program, matrix: _Matrix) -> str:
    parameter, readers = matrix.parameter, list(matrix.parameter.outputs)
    weight = program.weights[parameter.name]
    outputs, inputs = weight.shape
    name = f"{module_of(matrix.node)}/{UNPACKED_WEIGHT.name}"
    # Its shape is stated: ONNX does not infer what a function computes from an attribute.
    made = gs.Variable(name, dtype=parameter.dtype, shape=[outputs, inputs])
    attrs: dict[str, object] = {"outputs": outputs, "inputs": inputs}
    add_node(
        program.graph,
        UNPACKED_WEIGHT.name,
        name,
        [parameter],
        attrs=attrs,
        is_fused=True,
        output=made,
    )
    replace_uses(program.graph, parameter, made, readers=readers)
    program.weights[parameter.name] = pack(weight)
    parameter.shape = list(program.weights[parameter.name].shape)
    return name


def pack_weights(program: Program) -> PassReport:
    """Pack every linear's weight, and the tables that are stored once with one."""
    matched = [_matched(program, tensors) for tensors in _candidates(program)]
    every = [one for group in matched for one in group]
    names = [_pack(program, one) for one in every if isinstance(one, _Matrix)]
    if names:
        program.functions[UNPACKED_WEIGHT.name] = UNPACKED_WEIGHT
    tidy(program.graph)
    return PassReport(tuple(names), tuple(one for one in every if isinstance(one, Skip)))


@dataclass(frozen=True)
class PackWeights(Pass):
    """W[out, in] -> the tiles of a matrix unit, unpacked where they are read."""

    name: ClassVar = "pack-weights"
    after: ClassVar = (
        "fuse-qkv",
        "fuse-gate-up",
        "pad-vocabulary",
        "cast-dtype",
        "annotate-int8-qdq",
        "store-weights",
        "shard-tensor-parallel",
    )
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Pack what a linear multiplies by; decline what is stored otherwise, with the reason."""
        return pack_weights(program)
