"""Rewrites nothing: promises that no bias of q, k or v is lost on the way to the target.

Every `*.{q,k,v}_proj.bias` of the checkpoint must reach, through Weight expressions, exactly one
Add on the output of its own projection's product, which nothing else reads. An int8 weight must be
dequantized in or before that product: a bias that is added sooner would be scaled with it. Only
nodes that reach an output count. Checked after every later pass, in each phase.
"""

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.program import Program
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
)
_PRODUCTS = ("MatMul", "Gemm", "QuantizedLinearPerChannel")


def _readers(tensor: gs.Tensor, live: Set[int]) -> Iterable[gs.Node]:
    """Readers of a tensor that reach an output, looking through layout operators."""
    for node in tensor.outputs:
        if node.op in _LAYOUT and node.inputs[0] is tensor:
            yield from _readers(node.outputs[0], live)
        elif id(node) in live:
            yield node


def _readers_by_source(program: Program, live: Set[int]) -> Mapping[str, list[gs.Node]]:
    """Checkpoint tensor -> the live nodes that read a parameter made from it."""
    found: dict[str, list[gs.Node]] = {}
    for tensor in program.graph.inputs:
        weight = program.weights.get(tensor.name)
        for source in dict.fromkeys(weight.sources()) if weight is not None else ():
            found.setdefault(source, []).extend(_readers(tensor, live))
    return found


def _is_unscaled(product: gs.Node, program: Program) -> bool:
    """Whether it multiplies by int8 values as they are stored."""
    unscaled = [op for op in _LAYOUT if op != "DequantizeLinear"]
    weight = program.weights.get(through(product.inputs[1], *unscaled).name)
    has_scale = product.op == "QuantizedLinearPerChannel"
    return weight is not None and weight.dtype == "int8" and not has_scale


def _violation(
    bias: str, readers: Mapping[str, list[gs.Node]], live: Set[int], program: Program
) -> str | None:
    sums = [node for node in readers.get(bias, ()) if node.op == "Add"]
    if len(sums) != 1:
        return f"{bias} reaches {len(sums)} Adds in the {program.phase} graph, expected one"
    weight = f"{bias.removesuffix('.bias')}.weight"
    products = [node for node in readers.get(weight, ()) if node.op in _PRODUCTS]
    added = [produced_by(through(tensor, *_LAYOUT), *_PRODUCTS) for tensor in sums[0].inputs]
    if not any(node is product for node in added for product in products):
        return f"{bias} is added at {sums[0].name}, not to the product with {weight}"
    for product in products:
        if _is_unscaled(product, program):
            return f"{bias} is added to {product.name}, whose int8 weight is not dequantized"
        others = [n for n in _readers(product.outputs[0], live) if n is not sums[0]]
        if others:
            return f"{bias} is bypassed: {others[0].name} reads {product.name} without it"
    return None


@dataclass(frozen=True)
class QKVBiasReachesItsSum:
    """The invariant, over the checkpoint's biases."""

    biases: tuple[str, ...]
    name: str = "keep-qkv-bias"

    def violations(self, program: Program) -> tuple[str, ...]:
        """One sentence for each bias that is lost, doubled or added elsewhere."""
        live = {id(node) for node in ancestors(*program.graph.outputs)}
        readers = _readers_by_source(program, live)
        found = (_violation(bias, readers, live, program) for bias in self.biases)
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
