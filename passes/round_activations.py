"""What products with 16-bit weights take is rounded to 16 bits as well, in prefill.

    MatMul(x, W), W stored in bfloat16
 -> MatMul(Cast(Cast(x, bfloat16), float32), W)
    FusedAttention(q, keys, values, ..), keys and values stored in bfloat16
 -> FusedAttention(Cast(Cast(q, bfloat16), float32), keys, values, ..)

A matrix unit multiplies 16-bit numbers and sums in float32: the graph says so, and a target may
then use one. Products of one tensor share a pair of Casts; what else reads it reads it unrounded.
Packed weights or not makes no difference. int8 weights are left alone: their products take other
activations (`annotate-int8-qdq`), or floats.

It stands behind what stores weights and caches, and behind whatever may change a float's last bit,
which would tip a rounding over. Declines the product of one row that
insert-strided-slice leaves to the head, for which no matrix unit is worth its while, and operands
that are no float32. Numerically each operand is rounded once, by the unit roundoff of its size; see
`Contract.roundings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Phase, Program, tidy
from passes._match import (
    add_node,
    element_types,
    head_product,
    produced_by,
    replace_uses,
    through,
)

Dtype = Literal["bfloat16", "float16"]

_FLOAT = int(onnx.TensorProto.FLOAT)
_ONNX = {
    "float16": int(onnx.TensorProto.FLOAT16),
    "bfloat16": int(onnx.TensorProto.BFLOAT16),
}
# What may stand between a weight and its product.
_WEIGHT_LAYOUT = ("Cast", "Transpose", "UnpackedWeight")


def _reads_stored(program: Program, node: gs.Node, types: Mapping[str, int], dtype: Dtype) -> bool:
    """Whether a node multiplies by weights or caches that are stored in `dtype`."""
    if node.op == "MatMul":
        weight = program.weights.get(through(node.inputs[1], *_WEIGHT_LAYOUT).name)
        return weight is not None and weight.dtype == dtype
    if node.op != "FusedAttention":
        return False
    widened = [produced_by(cache, "Cast") for cache in node.inputs[1:3]]
    return all(one is not None and types[one.inputs[0].name] == _ONNX[dtype] for one in widened)


def _is_rounded(x: gs.Tensor, dtype: Dtype) -> bool:
    widened = produced_by(x, "Cast")
    narrowed = None if widened is None else produced_by(widened.inputs[0], "Cast")
    return narrowed is not None and narrowed.attrs["to"] == _ONNX[dtype]


def _round(program: Program, x: gs.Tensor, readers: list[gs.Node], dtype: Dtype) -> str:
    """Put one pair of Casts between x and its readers; the name of the second."""
    graph, stem = program.graph, readers[0].name
    down: dict[str, object] = {"to": _ONNX[dtype]}
    narrow = add_node(graph, "Cast", f"{stem}/narrowed/Cast", [x], attrs=down)
    up: dict[str, object] = {"to": _FLOAT}
    rounded = add_node(graph, "Cast", f"{stem}/rounded/Cast", [narrow], attrs=up)
    replace_uses(graph, x, rounded, readers=readers)
    return rounded.name


def round_activations(program: Program, dtype: Dtype) -> PassReport:
    """Round what every product with a weight or a cache of `dtype` reads."""
    types = element_types(program)
    # Not by the number of rows: a window of one token has no others.
    one_row = None if program.logits_of == "all" else head_product(program.graph, "Slice")
    found = [node for node in program.graph.nodes if _reads_stored(program, node, types, dtype)]
    if not found:
        reason = f"no linear's weight and no cache that FusedAttention reads is stored in {dtype}"
        return PassReport(skips=(Skip("graph", reason),))
    readers: dict[int, list[gs.Node]] = {}
    skips: list[Skip] = []
    for node in found:
        x = node.inputs[0]
        if node is one_row:
            skips.append(Skip(node.name, "it multiplies the one row that makes the logits"))
        elif types.get(x.name) != _FLOAT:
            skips.append(Skip(node.name, f"{x.name} is not float32"))
        elif not _is_rounded(x, dtype):
            readers.setdefault(id(x), []).append(node)
    rounded = [_round(program, nodes[0].inputs[0], nodes, dtype) for nodes in readers.values()]
    tidy(program.graph)
    return PassReport(tuple(rounded), tuple(skips))


@dataclass(frozen=True)
class RoundActivations(Pass):
    """x -> Cast(Cast(x, dtype), float32) where a product has a weight or a cache of `dtype`."""

    name: ClassVar = "round-activations"
    phases: ClassVar[tuple[Phase, ...]] = ("prefill",)
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-attention",
        "fuse-gate-up",
        "fuse-qkv",
        "fuse-rms-norm",
        "fuse-rotary",
        "fuse-silu-mul",
        "group-queries",
        "pad-vocabulary",
        "place-scale",
        "widen-angles",
        "cast-dtype",
        "annotate-int8-qdq",
        "store-kv-cache",
        "store-weights",
    )
    dtype: Dtype = "bfloat16"

    def promise(self) -> Contract:
        """A number of roundings of `dtype`, and nothing else."""
        return Contract.roundings(self.dtype)

    def run(self, program: Program) -> PassReport:
        """Round each operand once; decline what computes otherwise, with the reason."""
        return round_activations(program, self.dtype)
