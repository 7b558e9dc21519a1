"""Rewrites nothing: promises that no bias of q, k or v is lost on the way to the target.

Every `*.{q,k,v}_proj.bias` of the checkpoint must reach, through Weight expressions, exactly one
Add on the output of its own projection's product, which nothing else reads; and each of its rows
must meet the column of the product that the same row of its weight makes:

    MatMul(x, transpose(concat([q.weight, k.weight]))) + concat([q.bias, k.bias])     holds
    MatMul(x, transpose(concat([q.weight, k.weight]))) + concat([k.bias, q.bias])     is broken

Casts, transposes, DequantizeLinear, UnpackedWeight and slices of both may stand between. An int8
weight must be dequantized in or before its product: a bias that is added sooner would be scaled
with it. Only nodes that reach an output count. Checked after every later pass, in each phase.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.placement import Placement, placements
from compiler.contracts.program import Phase, Program
from compiler.contracts.weights import Weight, unpacked
from passes._match import ancestors, produced_by, through

QKV_BIAS = re.compile(r"\.(q|k|v)_proj\.bias$")
# What may stand between a parameter and its product or sum without changing whose it is.
_LAYOUT = (
    "Cast",
    "Reshape",
    "Transpose",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "DequantizeLinear",
    "UnpackedWeight",
)
# Multiplies by an int8 weight [out, in] and its scales, as one operator.
_QUANTIZED_PRODUCT = "QuantizedLinearPerChannel"
_PRODUCTS = ("MatMul", "Gemm", _QUANTIZED_PRODUCT)


@dataclass(frozen=True)
class _Use:
    """A live node that reads a parameter, by its operand `tensor`, transposed or not."""

    node: gs.Node
    tensor: gs.Tensor
    weight: Weight
    is_turned: bool

    def places(self, source: str, axis: int) -> tuple[Placement, ...]:
        """Where a checkpoint tensor lies along an axis of what the node reads."""
        is_matrix = len(self.weight.shape) == 2
        along = 1 - axis if is_matrix and self.is_turned else axis
        return tuple(one for one in placements(self.weight, along) if one.source == source)


def _readers(
    tensor: gs.Tensor, live: Set[int], *, is_turned: bool = False
) -> Iterator[tuple[gs.Node, gs.Tensor, bool]]:
    """(reader, what it reads, whether that is transposed) of the readers that reach an output.

    Layout operators are looked through.
    """
    for node in tensor.outputs:
        if node.op in _LAYOUT and node.inputs[0] is tensor:
            turns = node.op == "Transpose" and node.attrs.get("perm", [1, 0]) == [1, 0]
            yield from _readers(node.outputs[0], live, is_turned=is_turned != turns)
        elif id(node) in live:
            yield node, tensor, is_turned


def _uses_by_source(program: Program, live: Set[int]) -> Mapping[str, list[_Use]]:
    """Checkpoint tensor -> the live nodes that read a parameter made from it."""
    found: dict[str, list[_Use]] = {}
    for parameter in program.graph.inputs:
        weight = program.weights.get(parameter.name)
        if weight is None:
            continue
        uses = [
            _Use(node, tensor, unpacked(weight), turned)
            for node, tensor, turned in _readers(parameter, live)
        ]
        for source in dict.fromkeys(weight.sources()):
            found.setdefault(source, []).extend(uses)
    return found


def _output_axis(use: _Use) -> int | None:
    """The axis of a product's weight that makes its columns; None where the node is no product."""
    is_matrix = use.node.op in _PRODUCTS and len(use.weight.shape) == 2
    if not is_matrix or use.node.inputs[1] is not use.tensor:
        return None
    return 0 if use.node.attrs.get("transB", 0) or use.node.op == _QUANTIZED_PRODUCT else 1


def _is_unscaled(use: _Use) -> bool:
    """Whether a product multiplies by int8 values as they are stored."""
    if use.weight.dtype != "int8" or use.node.op == _QUANTIZED_PRODUCT:
        return False
    unscaled = [op for op in _LAYOUT if op != "DequantizeLinear"]
    return not through(use.tensor, *unscaled).inputs


def _violation(
    bias: str, uses: Mapping[str, list[_Use]], live: Set[int], phase: Phase
) -> str | None:
    sums = [use for use in uses.get(bias, ()) if use.node.op == "Add"]
    if len(sums) != 1:
        return f"{bias} reaches {len(sums)} Adds in the {phase} graph, expected one"
    total = sums[0]
    weight = f"{bias.removesuffix('.bias')}.weight"
    products = [use for use in uses.get(weight, ()) if _output_axis(use) is not None]
    added = [produced_by(through(tensor, *_LAYOUT), *_PRODUCTS) for tensor in total.node.inputs]
    product = next((use for use in products if any(node is use.node for node in added)), None)
    if product is None:
        return f"{bias} is added at {total.node.name}, not to the product with {weight}"
    for use in products:
        if _is_unscaled(use):
            return f"{bias} is added to {use.node.name}, whose int8 weight is not dequantized"
        for node, _, _ in _readers(use.node.outputs[0], live):
            if node is not total.node:
                return f"{bias} is bypassed: {node.name} reads {use.node.name} without it"
    return _misplaced(bias, total, weight, product)


def _misplaced(bias: str, total: _Use, weight: str, product: _Use) -> str | None:
    """Each entry of the bias must lie where that row of the weight does, and none may be left."""
    axis = _output_axis(product)
    assert axis is not None, f"{product.node.name} is a product"
    added, made = total.places(bias, 0), product.places(weight, axis)
    if [replace(one, source=weight) for one in added] == list(made):
        return None
    return (
        f"{bias} has {_spelled(added)} of {total.node.name}, "
        f"its weight has {_spelled(made)} of {product.node.name}"
    )


def _spelled(places: Sequence[Placement]) -> str:
    return " and ".join(map(str, places)) or "nothing"


@dataclass(frozen=True)
class QKVBiasReachesItsSum:
    """The invariant, over the checkpoint's biases."""

    biases: tuple[str, ...]
    name: str = "keep-qkv-bias"

    def violations(self, program: Program) -> tuple[str, ...]:
        """One sentence for each bias that is lost, doubled or added elsewhere."""
        live = {id(node) for node in ancestors(*program.graph.outputs)}
        uses = _uses_by_source(program, live)
        found = (_violation(bias, uses, live, program.phase) for bias in self.biases)
        return tuple(sentence for sentence in found if sentence is not None)


@dataclass(frozen=True)
class KeepQKVBias(Pass):
    """Hold, to the end of the pipeline, that each q, k and v bias is added exactly once."""

    name: ClassVar = "keep-qkv-bias"
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Nothing to rewrite."""
        del program
        return PassReport()

    def invariants(self, program: Program) -> tuple[Invariant, ...]:
        """The invariant over every such bias that the checkpoint holds."""
        biases = sorted(name for name in program.checkpoint_tensors if QKV_BIAS.search(name))
        return (QKVBiasReachesItsSum(tuple(biases)),)
