"""The gate and the up projection of an MLP become one product.

    gate = MatMul(x, Wg),  up = MatMul(x, Wu),  Mul(Mul(gate, Sigmoid(gate)), up)
 -> gate, up = Split(MatMul(x, W[in, gate + up])),  Mul(Mul(gate, Sigmoid(gate)), up)

The gate is what a Sigmoid or a FusedSiluMul reads; biases, where both have one, are joined as the
weights are. Both tensors keep their names, the new nodes are called `<mlp>.gate_up_proj/...`. It
stands before store-weights and quantization, which then see one linear.

Declines a gate that shares its input with no other product or with several, and where a weight is
read elsewhere too or is not stored [in, out], or one of the two alone has a bias. Every output is
the same sum; a runtime may add in another order for a wider product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import Linear, join_linears, match_linears, products_by_input


def _is_gate(product: gs.Node) -> bool:
    """Whether the product, or its sum with a bias, is what an activation gates."""
    output = product.outputs[0]
    sums = [node.outputs[0] for node in output.outputs if node.op == "Add"]
    return any(
        node.op in ("Sigmoid", "FusedSiluMul") and node.inputs[0] is tensor
        for tensor in (output, *sums)
        for node in tensor.outputs
    )


def _match(program: Program, group: Sequence[gs.Node]) -> list[Linear] | str:
    """The gate and the other product of one tensor; empty where there is no gate."""
    gates = [node for node in group if _is_gate(node)]
    others = [node for node in group if not _is_gate(node)]
    if not gates:
        return []
    if len(gates) != 1 or len(others) != 1:
        names, gated = [node.name for node in group], [node.name for node in gates]
        return f"{group[0].inputs[0].name} is read by the products {names}, of which gates: {gated}"
    return match_linears(program, [*gates, *others])


def fuse_gate_up(program: Program) -> PassReport:
    """Fuse the two projections of every gated MLP."""
    rewrites: list[str] = []
    skips: list[Skip] = []
    for group in products_by_input(program):
        match = _match(program, group)
        if isinstance(match, str):
            skips.append(Skip(group[0].name, match))
        elif match:
            rewrites.append(join_linears(program, match, "gate_up_proj"))
    tidy(program.graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseGateUp(Pass):
    """gate and up of a layer become one product with one weight, and a Split."""

    name: ClassVar = "fuse-gate-up"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        """Fuse each layer; decline one whose projections differ."""
        return fuse_gate_up(program)
