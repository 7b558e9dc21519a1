"""Matrices are stored as the checkpoint lays them out, in the dtype that the backend declares.

    MatMul(x, W[in, out])   ->  MatMul(x, Transpose(Cast(W[out, in])))
    Gather(E[V, H], ids)    ->  Cast(Gather(E[V, H], ids))

A linear's rows are then contiguous for one output, an embedding and the head tied to it are the
same bytes, and packaging copies instead of transposing. Vectors (norms, biases) stay float32. What
is int8, or 16 bits wide because the graph computes so (`annotate-int8-qdq`, `cast-dtype`), keeps
its dtype. Declines a matrix that something else reads. With float32, or with the dtype that the
checkpoint has, nothing is rounded; else each weight is rounded once, to nearest even, arithmetic
stays float32, and the result is to the bit that of the rounded weights, which `adapt_weights` says.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import DTYPES, Weight, cast, transpose
from passes._match import add_node, is_scale, module_of, replace_uses

StorageDtype = Literal["float32", "bfloat16", "float16"]
_ONNX = {"bfloat16": onnx.TensorProto.BFLOAT16, "float16": onnx.TensorProto.FLOAT16}
# Their matrix lies as the checkpoint's already.
_AS_STORED = (
    "Gather",
    "Cast",
    "Transpose",
    "Reshape",
    "DequantizeLinear",
    "QuantizedLinearPerChannel",
)


def _set_storage(program: Program, parameter: gs.Tensor, weight: Weight) -> None:
    program.weights[parameter.name] = weight
    parameter.shape = list(weight.shape)
    parameter.dtype = _ONNX.get(weight.dtype, DTYPES[weight.dtype])


def _widened(program: Program, name: str, tensor: gs.Tensor, dtype: str) -> gs.Tensor:
    if dtype == "float32":
        return tensor
    attrs: dict[str, object] = {"to": int(onnx.TensorProto.FLOAT)}
    return add_node(program.graph, "Cast", f"{name}/Cast", [tensor], attrs=attrs)


def _transposed(program: Program, stem: str, tensor: gs.Tensor) -> gs.Tensor:
    attrs: dict[str, object] = {"perm": [1, 0]}
    return add_node(program.graph, "Transpose", f"{stem}/Transpose", [tensor], attrs=attrs)


def _store_linear(program: Program, parameter: gs.Tensor, node: gs.Node, dtype: str) -> None:
    stem = module_of(node)
    weight = transpose(program.weights[parameter.name])
    is_wide = weight.dtype == "float32"
    _set_storage(program, parameter, cast(weight, dtype) if is_wide else weight)
    widened = _widened(program, stem, parameter, dtype) if is_wide else parameter
    turned = _transposed(program, stem, widened)
    replace_uses(program.graph, parameter, turned, readers=[node])


def _store_table(program: Program, parameter: gs.Tensor, node: gs.Node, dtype: str) -> None:
    _set_storage(program, parameter, cast(program.weights[parameter.name], dtype))
    rows, readers = node.outputs[0], list(node.outputs[0].outputs)
    widened = _widened(program, module_of(node), rows, dtype)
    replace_uses(program.graph, rows, widened, readers=readers)


def store_weights(program: Program, dtype: str) -> PassReport:
    """Rewrite each matrix of the weight table."""
    rewrites: list[str] = []
    skips: list[Skip] = []
    for parameter in list(program.graph.inputs):
        weight = program.weights.get(parameter.name)
        if weight is None or len(weight.shape) != 2 or is_scale(weight):
            continue
        node = parameter.outputs[0]
        if len(parameter.outputs) != 1:
            readers = [reader.name for reader in parameter.outputs]
            skips.append(Skip(parameter.name, f"it is read by {readers}, expected one node"))
        elif node.op == "MatMul" and node.inputs[1] is parameter:
            _store_linear(program, parameter, node, dtype)
            rewrites.append(node.name)
        elif node.op == "Gather" and node.inputs[0] is parameter and weight.dtype == "float32":
            if dtype != "float32":
                _store_table(program, parameter, node, dtype)
                rewrites.append(node.name)
        elif node.op not in _AS_STORED:
            skips.append(Skip(parameter.name, f"{node.name} reads it, no MatMul and no Gather"))
    tidy(program.graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class StoreWeights(Pass):
    """W[in, out] float32 -> W[out, in] in `dtype`, widened where it is read."""

    name: ClassVar = "store-weights"
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-qkv",
        "fuse-gate-up",
        "pad-vocabulary",
        "cast-dtype",
        "annotate-int8-qdq",
    )
    contract: ClassVar = Contract.exact()
    dtype: StorageDtype = "float32"

    def run(self, program: Program) -> PassReport:
        """Store each linear's weight and each table once."""
        return store_weights(program, self.dtype)

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """The matrices that are stored in another dtype are rounded to it."""
        dtypes = {name: program.weights[name].dtype for name in old if name in program.weights}
        return {
            name: value.astype(DTYPES[self.dtype]).astype(value.dtype)
            if dtypes.get(name) == self.dtype and value.dtype == np.float32
            else value
            for name, value in old.items()
        }
