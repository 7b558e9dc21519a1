"""Rewrites nothing: promises that no bias of q, k or v is lost on the way to the target.

Every `*.{q,k,v}_proj.bias` of the checkpoint must reach, through Weight expressions, exactly one Add on
the output of its own projection's product. Checked after every later pass, in each phase.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Contract, Pass, PassReport
from compiler.contracts.program import Program
from passes._match import operands, produced_by, through

QKV_BIAS = re.compile(r"\.(q|k|v)_proj\.bias$")
# What may stand between a parameter and its product or sum without changing whose it is.
_LAYOUT = ("Cast", "Reshape", "Transpose", "Identity", "Unsqueeze", "Squeeze", "DequantizeLinear", "Mul")


def _parameters(program: Program, source: str) -> list[gs.Tensor]:
    return [
        tensor
        for tensor in program.graph.inputs
        if tensor.name in program.weights and source in program.weights[tensor.name].sources()
    ]


def _readers(tensor: gs.Tensor) -> Iterable[gs.Node]:
    """Readers of a tensor, looking through layout operators."""
    for node in tensor.outputs:
        if node.op in _LAYOUT and node.inputs[0] is tensor:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _is_projection(program: Program, tensor: gs.Tensor, weight: str) -> bool:
    """Whether `tensor` is a product with a parameter made from the checkpoint's `weight`."""
    node = produced_by(through(tensor, *_LAYOUT), "MatMul", "Gemm")
    if node is None:
        return False
    parameter = through(node.inputs[1], *_LAYOUT).name
    return parameter in program.weights and weight in program.weights[parameter].sources()


def _violation(program: Program, bias: str) -> str | None:
    parameters = _parameters(program, bias)
    if not parameters:
        return f"{bias} is no parameter of the {program.phase} graph any more"
    sums = [node for tensor in parameters for node in _readers(tensor) if node.op == "Add"]
    if len(sums) != 1:
        return f"{bias} reaches {len(sums)} Adds in the {program.phase} graph, expected one"
    weight = f"{bias.removesuffix('.bias')}.weight"
    if any(_is_projection(program, one, weight) for one, _ in operands(sums[0])):
        return None
    return f"{bias} is added at {sums[0].name}, not to the product with {weight}"


@dataclass(frozen=True)
class QKVBiasReachesItsSum:
    """The invariant, over the checkpoint's biases."""

    biases: tuple[str, ...]
    name: str = "keep-qkv-bias"

    def violations(self, program: Program) -> tuple[str, ...]:
        """One sentence for each bias that is lost, doubled or added elsewhere."""
        found = (_violation(program, bias) for bias in self.biases)
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
