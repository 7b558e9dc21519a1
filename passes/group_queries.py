"""Queries that share a key head are grouped, instead of the key head being repeated for each.

    keys[1, K, S, d] -> Unsqueeze, Expand [1, K, G, S, d], Reshape [1, K * G, S, d]
    Softmax(q[1, H, T, d] x keys^T * scale + mask) x values
 -> q -> Reshape [1, K, G, T, d]; keys, values -> Unsqueeze [1, K, 1, S, d]
    Reshape(Softmax(q x keys^T * scale + mask) x values, [1, H, T, d])

No key or value is copied, and a target finds one form whether heads are grouped or not (G is 1
where each query head has keys of its own). Declines, naming the node, an attention that is written
in another way, or a mask that differs between heads. The same products, in another order of sums
at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import (
    Shape,
    add_node,
    constant,
    known_shapes,
    module_of,
    only_reader,
    operands,
    produced_by,
)


@dataclass(frozen=True)
class _Attention:
    """One attention over repeated heads."""

    softmax: gs.Node
    q: gs.Tensor
    keys: gs.Tensor
    values: gs.Tensor
    mask: gs.Tensor
    product: gs.Node
    total: gs.Node
    context: gs.Node
    grouped: tuple[int, int, int, int, int]


def _sum(softmax: gs.Node) -> tuple[gs.Node, gs.Node, gs.Tensor] | None:
    """(sum, product of scores, mask) of Softmax(Add(Mul(MatMul, scale), mask))."""
    total = produced_by(softmax.inputs[0], "Add")
    for scores, mask in operands(total) if total is not None else ():
        scaled = produced_by(scores, "Mul")
        for tensor, scale in operands(scaled) if scaled is not None else ():
            product = produced_by(tensor, "MatMul")
            if total is not None and product is not None and constant(scale) is not None:
                return total, product, mask
    return None


def _unrepeated(tensor: gs.Tensor, shapes: Mapping[str, Shape]) -> tuple[gs.Tensor, int] | str:
    """(cache [1, K, S, d], G): what is behind Unsqueeze, Expand, Reshape, or the cache itself."""
    merged = produced_by(tensor, "Reshape")
    if merged is None:
        return tensor, 1
    repeated = produced_by(merged.inputs[0], "Expand")
    apart = produced_by(repeated.inputs[0], "Unsqueeze") if repeated is not None else None
    axes = constant(apart.inputs[1]) if apart is not None else None
    if repeated is None or apart is None or axes is None or axes.tolist() != [2]:
        return f"{merged.name} does not merge heads repeated by Unsqueeze and Expand"
    cache = apart.inputs[0]
    shape, times, heads = (
        shapes.get(name) for name in (cache.name, repeated.outputs[0].name, merged.outputs[0].name)
    )
    if shape is None or times is None or heads is None or len(times) != 5 or len(heads) != 4:
        return f"{repeated.name} repeats to a shape that is not known"
    kv_heads, group, head_dim = shape[1], times[2], shape[3]
    if (
        group is None
        or kv_heads is None
        or (times[0], times[1], times[4]) != (1, kv_heads, head_dim)
    ):
        return f"{repeated.name} repeats other axes than the group's"
    if (heads[0], heads[1], heads[3]) != (1, kv_heads * group, head_dim):
        return f"{merged.name} does not merge the group with its key head"
    return cache, group


def _match(softmax: gs.Node, shapes: Mapping[str, Shape]) -> _Attention | str | None:
    found = _sum(softmax)
    if found is None:
        return "its scores are not Add(Mul(MatMul, scale), mask)"
    total, product, mask = found
    turned = produced_by(product.inputs[1], "Transpose")
    if turned is not None and turned.attrs.get("perm") == [0, 1, 2, 4, 3]:
        return None
    if turned is None or turned.attrs.get("perm") != [0, 1, 3, 2]:
        return f"{product.name} does not read keys through a Transpose of their last axes"
    context = only_reader(softmax.outputs[0], "MatMul")
    if context is None or context.inputs[0] is not softmax.outputs[0]:
        return "its weights are not read by one product"
    sides = [_unrepeated(tensor, shapes) for tensor in (turned.inputs[0], context.inputs[1])]
    for side in sides:
        if isinstance(side, str):
            return side
    (keys, group), (values, other) = (side for side in sides if not isinstance(side, str))
    q = product.inputs[0]
    q_shape, key_shape = shapes.get(q.name, ()), shapes.get(keys.name, ())
    if len(q_shape) != 4 or len(key_shape) != 4 or group != other:
        return f"{product.name} reads queries of shape {list(q_shape)}"
    _, heads, tokens, head_dim = q_shape
    kv_heads = key_shape[1]
    if heads is None or tokens is None or head_dim is None or kv_heads is None:
        return f"{product.name} reads queries or keys of unknown shape"
    if q_shape[0] != 1 or heads != kv_heads * group:
        return f"{product.name} has {heads} query heads over {kv_heads} key heads times {group}"
    mask_shape = shapes.get(mask.name)
    if mask_shape is None or len(mask_shape) not in (2, 4):
        return f"{total.name} adds a mask of unknown rank"
    if len(mask_shape) == 4 and mask_shape[:3] != (1, 1, tokens):
        return f"{total.name} adds a mask of {list(mask_shape)}, expected [1, 1, {tokens}, ..]"
    grouped = (1, kv_heads, group, tokens, head_dim)
    return _Attention(softmax, q, keys, values, mask, product, total, context, grouped)


def _rewrite(graph: gs.Graph, match: _Attention, mask: gs.Tensor) -> None:
    path = module_of(match.softmax)
    _, kv_heads, group, tokens, head_dim = match.grouped
    group_axis = np.array([2], np.int64)
    shape: dict[str, object] = {"allowzero": 1}
    q = add_node(
        graph,
        "Reshape",
        f"{path}/queries",
        [match.q, np.array(match.grouped, np.int64)],
        attrs=shape,
    )
    keys = add_node(graph, "Unsqueeze", f"{path}/keys", [match.keys, group_axis])
    perm: dict[str, object] = {"perm": [0, 1, 2, 4, 3]}
    turned = add_node(graph, "Transpose", f"{path}/turned_keys", [keys], attrs=perm)
    values = add_node(graph, "Unsqueeze", f"{path}/values", [match.values, group_axis])
    match.product.inputs = [q, turned]
    match.total.inputs = [mask if tensor is match.mask else tensor for tensor in match.total.inputs]
    heads = match.context.outputs[0]
    by_group = gs.Variable(f"{match.context.name}/grouped")
    match.context.inputs = [match.context.inputs[0], values]
    match.context.outputs = [by_group]
    by_head = np.array([1, kv_heads * group, tokens, head_dim], np.int64)
    add_node(graph, "Reshape", f"{path}/heads", [by_group, by_head], attrs=shape, output=heads)


def group_queries(program: Program) -> PassReport:
    """Group the queries of every attention that is not grouped yet."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    softmaxes = [node for node in graph.nodes if node.op == "Softmax"]
    shapes = known_shapes(program) if softmaxes else {}
    masks: dict[int, gs.Tensor] = {}
    for softmax in softmaxes:
        match = _match(softmax, shapes)
        if match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(softmax.name, match))
            continue
        mask = masks.get(id(match.mask), match.mask)
        if mask is match.mask and len(shapes[mask.name]) == 4:
            suffix = f"_{len(masks)}" if masks else ""
            flat = np.array([match.grouped[3], -1], np.int64)
            mask = add_node(graph, "Reshape", f"model.mask/flat{suffix}", [mask, flat])
            masks[id(match.mask)] = mask
        _rewrite(graph, match, mask)
        rewrites.append(softmax.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class GroupQueries(Pass):
    """Repeated key and value heads become an axis of their queries."""

    name: ClassVar = "group-queries"
    after: ClassVar = ("place-scale", "drop-nan-guard", "state-reshapes")
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-5)

    def run(self, program: Program) -> PassReport:
        """Group each attention; decline the others with the node that differs."""
        return group_queries(program)
