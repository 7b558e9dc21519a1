"""One rank's share of a model: a part of each layer's heads and channels, and of the vocabulary.

    q, k, v, gate, up   MatMul(x, W[in, out]) + b  ->  MatMul(x, W[:, share]) + b[share]
    o, down             MatMul(y, W[in, out]) + b  ->  AllReduce(MatMul(y share, W[share, :])) + b
    head                logits                     ->  AllGather(MatMul(h, W[:, share]))
    caches              [C, K, d]                  ->  [C, heads of the rank, d]

It is run once for each rank on a copy of the program behind all other passes; the graphs of all
ranks are equal, and differ by their weights. Biases of o and down stand behind the sum, and are
added once. Embeddings and norms are whole on each rank. What is quantized is cut as it is: a rank
has the codes and the scales that the whole weight has there. Joined products are cut part by part.

Key heads that do not divide are refused; with `align_qkv` each is repeated until they do, with its
bias, and ranks that read the same head have a copy each (`compiler.contracts.tensor_parallel`).

Declines as a whole, naming the node: heads or channels that do not divide, a weight of another
form, an operator between two linears that is not known to work head by head. A head whose
vocabulary does not divide stays whole on each rank.

One rank's graph by itself computes a part of the sums: what holds is that all ranks together, in
step, give what the whole gives but for rounding (`compiler.numerics.ranks_run`). With one way the
two operators are the identity, and the pass is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from compiler.contracts.tensor_parallel import (
    ALL_GATHER,
    ALL_REDUCE,
    COLLECTIVES,
    kv_heads_of_rank,
    unaligned,
)
from compiler.contracts.weights import Weight, concat, cut, transpose
from passes._divided_axes import HEAD_AXIS
from passes._divided_tensor import Part
from passes._match import add_node, module_of, produced_by, through
from passes._sharded_linears import (
    PRODUCTS,
    Plan,
    Share,
    caches_of,
    joined,
    linear_of,
    plan_of,
)

ALL_REDUCE_FUNCTION = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    {ALL_REDUCE} <ways> (x) => (total)
    {{
        total = Identity (x)
    }}
    """
)
# As if every rank had the same.
ALL_GATHER_FUNCTION = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    {ALL_GATHER} <ways, repeats> (x) => (joined)
    {{
        times = Constant <value_ints: ints = @repeats> ()
        joined = Tile (x, times)
    }}
    """
)


def _cut(weight: Weight, axis: int, kept: Sequence[tuple[int, int]]) -> Weight:
    """The stretches of one axis, one after the other."""
    pieces = [cut(weight, axis, start, stop) for start, stop in kept]
    if len(pieces) == 1:
        return pieces[0]
    if axis == 0:
        return concat(pieces)
    return transpose(concat([transpose(piece) for piece in pieces]))


def _kept(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Stretches of an axis that several parts lie on, one after the other."""
    found: list[tuple[int, int]] = []
    base = 0
    for part in parts:
        found += [(base + start, base + stop) for start, stop in part.kept]
        base += part.full
    return list(joined(found))


def _set(program: Program, parameter: gs.Tensor, weight: Weight) -> None:
    program.weights[parameter.name] = weight
    parameter.shape = list(weight.shape)


def _narrow(program: Program, tensor: gs.Tensor, axis: int, parts: Sequence[Part]) -> None:
    _set(program, tensor, _cut(program.weights[tensor.name], axis, _kept(parts)))


def _meet(program: Program, node: gs.Node, operator: str, attrs: dict[str, object]) -> str:
    """Put a collective behind a product; its result keeps the product's name."""
    module, whole = module_of(node), node.outputs[0]
    share = gs.Variable(f"{module}/share")
    node.outputs = [share]
    name = f"{module}/{operator}"
    add_node(program.graph, operator, name, [share], attrs=attrs, is_fused=True, output=whole)
    return name


def _apply(program: Program, plan: Plan, rank: Share) -> list[str]:
    division, parameters = plan.division, {t.name: t for t in program.graph.inputs}
    for linear, parts in plan.columns:
        _narrow(program, linear.parameter, linear.output_axis, parts)
        if linear.scale is not None:
            _narrow(program, linear.scale, 0, parts)
    for name, parts in division.vectors.items():
        _narrow(program, parameters[name], 0, parts)
    for linear, part in plan.sums:
        _narrow(program, linear.parameter, 1 - linear.output_axis, [part])
    for node, index, values in division.constants:
        node.inputs[index] = gs.Constant(f"{node.name}.{index}", np.array(values, np.int64))
    for node, name, values in division.attributes:
        node.attrs[name] = values
    for tensor in (*caches_of(program), *program.graph.outputs):
        if id(tensor) in division.found:
            tensor.shape = list(division.found[id(tensor)].local)
    program.functions[ALL_REDUCE] = ALL_REDUCE_FUNCTION
    reduced = [
        _meet(program, linear.node, ALL_REDUCE, {"ways": rank.ways}) for linear, _ in plan.sums
    ]
    return [*(linear.node.name for linear, _ in plan.columns), *reduced]


def _shard_head(program: Program, rank: Share) -> str | Skip:
    """Cut the product that makes the logits, and join what the ranks make of it."""
    logits = next((tensor for tensor in program.graph.outputs if tensor.name == "logits"), None)
    behind = None if logits is None else through(logits, "Add", "Cast", "Slice")
    node = None if behind is None else produced_by(behind, *PRODUCTS)
    linear = None if node is None else linear_of(program, node)
    if isinstance(linear, str):
        return Skip("logits", linear)
    if node is None or linear is None:
        return Skip("logits", "no product with a weight makes them")
    vocabulary = program.weights[linear.parameter.name].shape[linear.output_axis]
    if vocabulary % rank.ways:
        return Skip(node.name, f"its {vocabulary} outputs do not divide by {rank.ways}")
    part = rank.share(vocabulary)
    _narrow(program, linear.parameter, linear.output_axis, [part])
    if linear.scale is not None:
        _narrow(program, linear.scale, 0, [part])
    program.functions[ALL_GATHER] = ALL_GATHER_FUNCTION
    attrs: dict[str, object] = {"ways": rank.ways, "repeats": [1, 1, rank.ways]}
    return _meet(program, node, ALL_GATHER, attrs)


def shard_tensor_parallel(program: Program, ways: int, rank: int, *, align_qkv: bool) -> PassReport:
    """Keep one rank's share.

    Raises:
        ConfigError: The key heads do not divide, and may not be repeated.
    """
    met = next((node for node in program.graph.nodes if node.op in COLLECTIVES), None)
    if met is not None:
        return PassReport(skips=(Skip(met.name, "the graph is sharded already"),))
    caches = caches_of(program)
    if not caches or any(len(cache.shape) != 3 for cache in caches):
        return PassReport(skips=(Skip("graph", "its caches are not static"),))
    kv_heads = int(caches[0].shape[HEAD_AXIS])
    head_dim = max(int(cache.shape[2]) for cache in caches)
    if kv_heads % ways and not align_qkv:
        raise unaligned(kv_heads, ways, where="shard-tensor-parallel")
    share = Share(ways, rank, kv_heads, head_dim)
    plan = plan_of(program, share)
    if isinstance(plan, Skip):
        return PassReport(skips=(plan,))
    rewrites = _apply(program, plan, share)
    head = _shard_head(program, share)
    tidy(program.graph)
    if isinstance(head, Skip):
        return PassReport(tuple(rewrites), (head,))
    return PassReport((*rewrites, head))


@dataclass(frozen=True)
class ShardTensorParallel(Pass):
    """One rank keeps its heads, channels and vocabulary, and meets the others twice a layer."""

    name: ClassVar = "shard-tensor-parallel"
    requires: ClassVar = ("plan-kv-cache",)
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-qkv",
        "fuse-gate-up",
        "fuse-rotary",
        "fuse-attention",
        "fuse-rms-norm",
        "fuse-silu-mul",
        "pad-vocabulary",
        "eliminate-dead",
        "cast-dtype",
        "annotate-int8-qdq",
        "store-weights",
    )
    contract: ClassVar = Contract.exact()
    changes_signature: ClassVar = True
    ways: int = 1
    rank: int = 0
    align_qkv: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ways:
            raise ValueError(f"rank {self.rank} is none of {self.ways} ways")

    def run(self, program: Program) -> PassReport:
        """Cut every layer and the head; decline a graph that cannot be cut."""
        return shard_tensor_parallel(program, self.ways, self.rank, align_qkv=self.align_qkv)

    def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """Of the caches, the heads of the rank."""
        return self._with_own_heads(old, set(program.aliases.values()))

    def adapt_outputs(
        self, old: Arrays, old_inputs: Arrays, program: Program
    ) -> dict[str, np.ndarray]:
        """Of the caches, the heads of the rank; the logits are whole, once the ranks have met."""
        del old_inputs
        return self._with_own_heads(old, set(program.aliases))

    def _with_own_heads(self, arrays: Arrays, caches: set[str]) -> dict[str, np.ndarray]:
        return {
            name: array[:, list(kv_heads_of_rank(array.shape[HEAD_AXIS], self.ways, self.rank))]
            if name in caches
            else array
            for name, array in arrays.items()
        }
