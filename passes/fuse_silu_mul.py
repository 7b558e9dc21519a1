"""One node for the gated activation of the MLP.

    Mul(Mul(gate, Sigmoid(gate)), up)  ->  FusedSiluMul(gate, up)

Declines a Sigmoid that does not gate its own input, or whose product is read by something else than
one product. The ONNX function holds the same operators in the same order.
"""

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, module_of, only_reader, operands

FUSED_SILU_MUL = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    FusedSiluMul (gate, up) => (activated)
    {{
        share = Sigmoid (gate)
        silu = Mul (gate, share)
        activated = Mul (silu, up)
    }}
    """
)


@dataclass(frozen=True)
class _Gating:
    """One matched activation."""

    gate: gs.Tensor
    up: gs.Tensor
    last: gs.Node


def _match(sigmoid: gs.Node) -> _Gating | str:
    gate, share = sigmoid.inputs[0], sigmoid.outputs[0]
    silu = only_reader(share, "Mul")
    if silu is None or not any(a is gate and b is share for a, b in operands(silu)):
        return "it does not multiply its own input"
    last = only_reader(silu.outputs[0], "Mul")
    if last is None:
        return f"{silu.name} is not read by one product"
    up = next(b for a, b in operands(last) if a is silu.outputs[0])
    if isinstance(up, gs.Constant):
        return f"{last.name} multiplies by a constant"
    return _Gating(gate, up, last)


def fuse_silu_mul(program: Program) -> PassReport:
    """Fuse every Sigmoid that gates an MLP."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    for sigmoid in [node for node in graph.nodes if node.op == "Sigmoid"]:
        match = _match(sigmoid)
        if isinstance(match, str):
            skips.append(Skip(sigmoid.name, match))
            continue
        name = f"{module_of(sigmoid)}/FusedSiluMul"
        output = match.last.outputs[0]
        match.last.outputs.clear()
        inputs = [match.gate, match.up]
        add_node(graph, "FusedSiluMul", name, inputs, is_fused=True, output=output)
        rewrites.append(name)
    if rewrites:
        program.functions[FUSED_SILU_MUL.name] = FUSED_SILU_MUL
    tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseSiluMul(Pass):
    """gate * sigmoid(gate) * up becomes one FusedSiluMul."""

    name: ClassVar = "fuse-silu-mul"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-6)

    def run(self, program: Program) -> PassReport:
        """Fuse each gated activation; decline what only looks like one."""
        return fuse_silu_mul(program)
