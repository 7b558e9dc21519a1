"""One node a layer for grouped-query attention over a static cache, which targets can take whole.

    q, keys, values
 -> MatMul, Mul(scale), Add(CausalMask), Softmax, MatMul, Reshape, Transpose, Reshape
 -> FusedAttention(q[1, H, T, d], keys[C, K, d], values[C, K, d], past_length, valid_length)
    [1, T, H * d]

Matches the canonical form that plan-kv-cache leaves: caches read through Unsqueeze and Transpose,
groups folded into an axis of their own; the mask's sliding window, or 0, goes with the node.
Declines, naming the node, where any operator, axis or shape differs. The ONNX function holds the
same operators in the same order. A row that sees no key (padding past the window's edge) is a mean
there, and may be anything on a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, constant, module_of, only_reader, operands, produced_by

FUSED_ATTENTION = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}, "{FUSED_DOMAIN}" : 1]>
    FusedAttention <scale, blocked, window, tokens, context, grouped, by_head, merged>
        (q, keys, values, past_length, valid_length) => (attended)
    {{
        zero = Constant <value_int: int = 0> ()
        one = Constant <value_int: int = 1> ()
        group_axis = Constant <value_ints: ints = [0, 2]> ()
        factor = Constant <value_float: float = @scale> ()
        grouped_shape = Constant <value_ints: ints = @grouped> ()
        by_head_shape = Constant <value_ints: ints = @by_head> ()
        merged_shape = Constant <value_ints: ints = @merged> ()
        length = Constant <value_int: int = @context> ()
        columns = Range (zero, length, one)
        mask = {FUSED_DOMAIN}.CausalMask
            <tokens: int = @tokens, window: int = @window, blocked: float = @blocked>
            (columns, past_length, valid_length)
        grouped_q = Reshape (q, grouped_shape)
        keys_t = Transpose <perm: ints = [1, 2, 0]> (keys)
        keys_5d = Unsqueeze (keys_t, group_axis)
        products = MatMul (grouped_q, keys_5d)
        scores = Mul (products, factor)
        masked = Add (scores, mask)
        weights = Softmax <axis: int = -1> (masked)
        values_t = Transpose <perm: ints = [1, 0, 2]> (values)
        values_5d = Unsqueeze (values_t, group_axis)
        context = MatMul (weights, values_5d)
        heads = Reshape (context, by_head_shape)
        by_token = Transpose <perm: ints = [0, 2, 1, 3]> (heads)
        attended = Reshape (by_token, merged_shape)
    }}
    """
)
# The axes of grouped queries.
_GROUPED = ("batch", "key head", "query head of its group", "token", "feature")


@dataclass(frozen=True)
class _Attention:
    """What one matched layer is made of."""

    q: gs.Tensor
    keys: gs.Tensor
    values: gs.Tensor
    mask: gs.Node
    scale: float
    grouped: Sequence[int]
    last: gs.Node


def _constant_operand(node: gs.Node, index: int) -> list[int]:
    value = constant(node.inputs[index]) if len(node.inputs) > index else None
    return [] if value is None else [int(entry) for entry in value.ravel()]


def _cache_behind(tensor: gs.Tensor, *, is_transposed: bool) -> gs.Tensor | None:
    """The cache [C, K, d] behind Unsqueeze, Transpose, Unsqueeze(, Transpose)."""
    if is_transposed:
        node = produced_by(tensor, "Transpose")
        if node is None or node.attrs.get("perm") != [0, 1, 2, 4, 3]:
            return None
        tensor = node.inputs[0]
    group = produced_by(tensor, "Unsqueeze")
    if group is None or _constant_operand(group, 1) != [2]:
        return None
    by_head = produced_by(group.inputs[0], "Transpose")
    if by_head is None or by_head.attrs.get("perm") != [0, 2, 1, 3]:
        return None
    batch = produced_by(by_head.inputs[0], "Unsqueeze")
    if batch is None or _constant_operand(batch, 1) != [0]:
        return None
    cache = batch.inputs[0]
    return cache if produced_by(cache, "CacheUpdate") is not None else None


def _masked_scores(softmax: gs.Node) -> tuple[gs.Node, gs.Node] | None:
    """(the CausalMask node, the node that makes the scaled scores)."""
    total = produced_by(softmax.inputs[0], "Add")
    for scores, mask in operands(total) if total is not None else ():
        made, scaled = produced_by(mask, "CausalMask"), produced_by(scores, "Mul")
        if made is not None and scaled is not None:
            return made, scaled
    return None


def _match(softmax: gs.Node) -> _Attention | str:
    axis = softmax.attrs.get("axis", -1)
    if axis not in (-1, len(_GROUPED) - 1):
        return f"it is over axis {axis}, expected the last"
    found = _masked_scores(softmax)
    if found is None:
        return "its scores are not Add(Mul(..), CausalMask)"
    mask, scaled = found
    sides = [(one, constant(other)) for one, other in operands(scaled)]
    product, scale = next(((a, b) for a, b in sides if b is not None), (None, None))
    if product is None or scale is None or scale.size != 1:
        return f"{scaled.name} does not scale by a constant"
    scores = produced_by(product, "MatMul")
    if scores is None:
        return f"{scaled.name} does not scale a MatMul"
    grouped = produced_by(scores.inputs[0], "Reshape")
    shape = _constant_operand(grouped, 1) if grouped is not None else []
    if grouped is None or len(shape) != len(_GROUPED) or min(shape) < 1:
        return f"{scores.name} does not read queries grouped as [1, K, H / K, T, d]"
    keys = _cache_behind(scores.inputs[1], is_transposed=True)
    context = only_reader(softmax.outputs[0], "MatMul")
    if keys is None or context is None:
        return f"{scores.name} does not read its keys from a static cache"
    values = _cache_behind(context.inputs[1], is_transposed=False)
    if values is None:
        return f"{context.name} does not read its values from a static cache"
    last = _merged(context, shape)
    if last is None:
        return f"{context.name} is not merged to [1, T, H * d]"
    return _Attention(grouped.inputs[0], keys, values, mask, float(scale.item()), shape, last)


def _merged(context: gs.Node, grouped: Sequence[int]) -> gs.Node | None:
    """The last Reshape of [1, K, G, T, d] -> [1, H, T, d] -> [1, T, H, d] -> [1, T, H * d]."""
    _, kv_heads, group, tokens, head_dim = grouped
    by_head = only_reader(context.outputs[0], "Reshape")
    heads = kv_heads * group
    if by_head is None or _constant_operand(by_head, 1) != [1, heads, tokens, head_dim]:
        return None
    by_token = only_reader(by_head.outputs[0], "Transpose")
    if by_token is None or by_token.attrs.get("perm") != [0, 2, 1, 3]:
        return None
    merged = only_reader(by_token.outputs[0], "Reshape")
    if merged is None or _constant_operand(merged, 1) != [1, tokens, heads * head_dim]:
        return None
    return merged


def fuse_attention(program: Program) -> PassReport:
    """Fuse every Softmax that ends a canonical attention."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    for softmax in [node for node in graph.nodes if node.op == "Softmax"]:
        match = _match(softmax)
        if isinstance(match, str):
            skips.append(Skip(softmax.name, match))
            continue
        name = f"{module_of(softmax)}/FusedAttention"
        output = match.last.outputs[0]
        match.last.outputs.clear()
        _, kv_heads, group, tokens, head_dim = match.grouped
        heads = kv_heads * group
        _, past_length, valid_length = match.mask.inputs
        add_node(
            graph,
            "FusedAttention",
            name,
            [match.q, match.keys, match.values, past_length, valid_length],
            attrs={
                "scale": match.scale,
                "blocked": match.mask.attrs["blocked"],
                "window": match.mask.attrs["window"],
                "tokens": tokens,
                "context": program.context,
                "grouped": list(match.grouped),
                "by_head": [1, heads, tokens, head_dim],
                "merged": [1, tokens, heads * head_dim],
            },
            is_fused=True,
            output=output,
        )
        output.name = name
        rewrites.append(name)
    if rewrites:
        program.functions[FUSED_ATTENTION.name] = FUSED_ATTENTION
    tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Scores, mask, softmax and context of a layer become one FusedAttention."""

    name: ClassVar = "fuse-attention"
    requires: ClassVar = ("plan-kv-cache",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-6)

    def run(self, program: Program) -> PassReport:
        """Fuse each layer that matches; decline the others with the node that differs."""
        return fuse_attention(program)
