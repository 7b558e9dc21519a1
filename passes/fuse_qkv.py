"""The three projections of an attention become one product.

    q = MatMul(x, Wq) + bq,  k = MatMul(x, Wk) + bk,  v = MatMul(x, Wv) + bv
 -> q, k, v = Split(MatMul(x, W[in, q + k + v]) + b[q + k + v])

The weight and the bias are concatenations of the checkpoint's, in the order q, k, v; the three
tensors keep their names, the new nodes are called `<attention>.qkv_proj/...`. Three products of one
tensor whose names do not say which is which are taken in the graph's order. It stands before
store-weights and quantization, which then see one linear.

Declines where one of the three reads another tensor, where a weight is read elsewhere too or is not
stored [in, out], and where some have a bias and some have none. Every output is the same sum; a
runtime may add in another order for a wider product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import Linear, join_linears, match_linears, module_of, products_by_input

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def _match(program: Program, group: Sequence[gs.Node]) -> list[Linear] | str:
    """Linears q, k and v among the products of one tensor; empty where they are no projections."""
    by_name = {module_of(node).rpartition(".")[2]: node for node in group}
    lacking = [name for name in PROJECTIONS if name not in by_name]
    if len(lacking) == len(PROJECTIONS):
        return match_linears(program, group) if len(group) == len(PROJECTIONS) else []
    if lacking:
        return f"{group[0].inputs[0].name} is not read by {' and '.join(lacking)}"
    return match_linears(program, [by_name[name] for name in PROJECTIONS])


def fuse_qkv(program: Program) -> PassReport:
    """Fuse the projections of every attention."""
    rewrites: list[str] = []
    skips: list[Skip] = []
    for group in products_by_input(program):
        match = _match(program, group)
        if isinstance(match, str):
            skips.append(Skip(group[0].name, match))
        elif match:
            rewrites.append(join_linears(program, match, "qkv_proj"))
    tidy(program.graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseQKV(Pass):
    """q, k and v of a layer become one product with one weight and one bias, and a Split."""

    name: ClassVar = "fuse-qkv"
    requires: ClassVar = ("keep-qkv-bias",)
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        """Fuse each layer; decline one whose projections differ."""
        return fuse_qkv(program)
