"""Which node is which module of a decoder, by where it stands, never by its name.

    q, k, v     the linears above the scores' queries, above the new keys, above the new values
    o           the linear below the context
    gate, up    the two linears above the third, `down`; the gate's way to it has the activation
    norms       the products with a weight of one axis above q, above the gate, above the head
    layers      in the order of their Softmax; keys are what the scores read, values the context

A linear is a product with a weight of two axes, perhaps turned by a Transpose. A role that no node
has, or several have, refuses the file and names the nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from compiler.contracts.errors import CheckpointError
from compiler.onnx_source.signature import Cache, Signature
from compiler.onnx_source.walking import first_above, first_below, value_inputs

_NORM_OPS = ("Add", "Div", "Mul", "Pow", "Reciprocal", "ReduceMean", "Sqrt")
_ACTIVATIONS = ("Sigmoid", "Tanh", "Erf", "Gelu", "Relu", "HardSwish")


@dataclass(frozen=True)
class Layer:
    """Its caches, and its modules: name below `model.layers.N` -> the node of the weight."""

    key: Cache
    value: Cache
    softmax: gs.Node
    modules: Mapping[str, gs.Node]


@dataclass(frozen=True)
class Roles:
    """The layers in order, and the modules around them by their full names."""

    layers: tuple[Layer, ...]
    around: Mapping[str, gs.Node]


@dataclass(frozen=True)
class _Attention:
    key: Cache
    value: Cache
    softmax: gs.Node
    q: gs.Node
    k: gs.Node
    v: gs.Node
    o: gs.Node


@dataclass(frozen=True)
class _MLP:
    gate: gs.Node
    up: gs.Node
    down: gs.Node


class _Finder:
    """The searches, with the file that their errors name."""

    def __init__(self, graph: gs.Graph, weights: Mapping[str, object], path: Path) -> None:
        self.graph, self.path = graph, path
        self._shaped = {t.name: len(t.shape) for t in graph.inputs if t.name in weights}

    def is_linear(self, node: gs.Node) -> bool:
        """Whether a node is a product with a weight of two axes."""
        return node.op == "MatMul" and self._axes(node.inputs[1]) == 2

    def is_weighted(self, node: gs.Node) -> bool:
        """Whether a node multiplies by a weight of one axis."""
        return node.op == "Mul" and any(self._axes(tensor) == 1 for tensor in node.inputs)

    def _axes(self, tensor: gs.Tensor) -> int:
        """Axes of a weight, 0 for anything else."""
        if tensor.inputs and tensor.inputs[0].op == "Transpose":
            tensor = tensor.inputs[0].inputs[0]
        return 0 if tensor.inputs else self._shaped.get(tensor.name, 0)

    def one(self, nodes: Sequence[gs.Node], role: str) -> gs.Node:
        """The only node, or an error that names all."""
        if len(nodes) == 1:
            return nodes[0]
        names = ", ".join(sorted(f"'{node.name}'" for node in nodes)) or "nothing"
        raise CheckpointError(
            f"{role}: expected one node, found {names}",
            where=str(self.path),
            hint="Qwen2 and Llama decoders are taken, as transformers computes them",
            code="onnx-structure",
        )

    def linear_above(self, tensor: gs.Tensor, role: str) -> gs.Node:
        """The one linear nearest above."""
        return self.one(first_above(tensor, self.is_linear), role)

    def norm_above(self, linear: gs.Node) -> gs.Node | None:
        """The product with a norm's weight that a linear reads; None where there is none."""
        found = first_above(
            linear.inputs[0], lambda node: self.is_weighted(node) or self.is_linear(node)
        )
        norms = [node for node in found if self.is_weighted(node)]
        return norms[0] if len(found) == len(norms) == 1 else None


def recognise_roles(
    graph: gs.Graph, signature: Signature, weights: Mapping[str, object], path: Path
) -> Roles:
    """The modules of every layer and those around them.

    Args:
        graph: In topological order.
        signature: Its inputs and outputs by role.
        weights: Names of the inputs that may be weights.
        path: The file, for errors.

    Raises:
        CheckpointError: A role has no node, or several.
    """
    finder = _Finder(graph, weights, path)
    head = finder.linear_above(signature.logits, "the head")
    gathers = [n for n in signature.ids.outputs if n.op == "Gather" and n.inputs[0].name in weights]
    softmaxes = [node for node in graph.nodes if node.op == "Softmax"]
    attentions = [
        _attention(finder, softmax, signature, f"layer {index}")
        for index, softmax in enumerate(softmaxes)
    ]
    used = [cache for one in attentions for cache in (one.key, one.value)]
    if len({id(cache) for cache in used}) != len(signature.caches) or len(used) != len(
        signature.caches
    ):
        raise CheckpointError(
            f"{len(signature.caches)} caches serve {len(softmaxes)} attentions, expected a key "
            "and a value each",
            where=str(path),
            code="onnx-structure",
        )
    around = {"model.embed_tokens": finder.one(gathers, "the embedding"), "lm_head": head}
    last = finder.norm_above(head)
    if last is not None:
        around["model.norm"] = last
    mlps = _mlps(finder, attentions, head)
    layers = tuple(
        Layer(one.key, one.value, one.softmax, _modules(finder, one, mlp))
        for one, mlp in zip(attentions, mlps, strict=True)
    )
    return Roles(layers, around)


def _attention(finder: _Finder, softmax: gs.Node, signature: Signature, layer: str) -> _Attention:
    scores = finder.one(first_above(softmax.inputs[0], _is_product), f"{layer}: the scores")
    below = first_below(softmax.outputs[0], _is_product)
    context = finder.one(below, f"{layer}: the context")
    appends = {id(cache.append): cache for cache in signature.caches}

    def cache_above(tensor: gs.Tensor) -> Cache | None:
        found = first_above(tensor, lambda n: id(n) in appends or finder.is_linear(n))
        return appends.get(id(found[0])) if len(found) == 1 else None

    keys = [cache_above(tensor) for tensor in scores.inputs]
    key, value = next((one for one in keys if one), None), cache_above(context.inputs[1])
    if key is None or value is None or all(keys):
        raise CheckpointError(
            f"node '{softmax.name}': its attention does not read one past key and one past value",
            where=str(finder.path),
            hint="Qwen2 and Llama decoders are taken, as transformers computes them",
            code="onnx-structure",
        )
    queries = scores.inputs[0] if keys[1] is not None else scores.inputs[1]
    return _Attention(
        key=key,
        value=value,
        softmax=softmax,
        q=finder.linear_above(queries, f"{layer}: the queries"),
        k=finder.linear_above(key.append.inputs[1], f"{layer}: the keys"),
        v=finder.linear_above(value.append.inputs[1], f"{layer}: the values"),
        o=finder.one(
            first_below(context.outputs[0], finder.is_linear), f"{layer}: the attention's output"
        ),
    )


def _is_product(node: gs.Node) -> bool:
    return node.op == "MatMul"


def _mlps(finder: _Finder, attentions: Sequence[_Attention], head: gs.Node) -> list[_MLP]:
    """The MLP of each layer: what stands between its `o` and the next layer's queries."""
    known = [head, *(n for one in attentions for n in (one.q, one.k, one.v, one.o))]
    rest = [
        node
        for node in finder.graph.nodes
        if finder.is_linear(node) and not any(node is other for other in known)
    ]
    owner = {id(one.o): index for index, one in enumerate(attentions)}
    found: dict[int, list[_MLP]] = {}
    for down in rest:
        above = first_above(down.inputs[0], finder.is_linear)
        if len(above) != 2 or any(id(node) in owner for node in above):
            continue
        gates = [node for node in above if _is_activated(finder, node, down)]
        if len(gates) != 1:
            continue
        gate = gates[0]
        up = next(node for node in above if node is not gate)
        layers = [
            owner[id(n)] for n in first_above(gate.inputs[0], finder.is_linear) if id(n) in owner
        ]
        found.setdefault(max(layers, default=-1), []).append(_MLP(gate, up, down))
    mlps: list[_MLP] = []
    for index in range(len(attentions)):
        downs = [mlp.down for mlp in found.get(index, [])]
        finder.one(downs, f"layer {index}: the MLP's output")
        mlps += found[index]
    return mlps


def _is_activated(finder: _Finder, linear: gs.Node, down: gs.Node) -> bool:
    """Whether an activation stands between two linears."""
    marks = first_below(
        linear.outputs[0], lambda n: n.op in _ACTIVATIONS or n is down or finder.is_linear(n)
    )
    return any(node.op in _ACTIVATIONS for node in marks)


def _modules(finder: _Finder, attention: _Attention, mlp: _MLP) -> dict[str, gs.Node]:
    modules = {
        "self_attn.q_proj": attention.q,
        "self_attn.k_proj": attention.k,
        "self_attn.v_proj": attention.v,
        "self_attn.o_proj": attention.o,
        "mlp.gate_proj": mlp.gate,
        "mlp.up_proj": mlp.up,
        "mlp.down_proj": mlp.down,
    }
    for name, linear in (("input_layernorm", attention.q), ("post_attention_layernorm", mlp.gate)):
        norm = finder.norm_above(linear)
        if norm is not None:
            modules[name] = norm
    return modules


def norm_nodes(last: gs.Node) -> list[gs.Node]:
    """The nodes of a norm, from the mean of squares to the product with its weight."""
    found: list[gs.Node] = []
    stack = [last]
    while stack:
        node = stack.pop()
        if any(node is other for other in found):
            continue
        found.append(node)
        if node.op in ("Pow",) or (node.op == "Mul" and node.inputs[0] is node.inputs[1]):
            continue
        for tensor in value_inputs(node):
            stack += [n for n in tensor.inputs if n.op in _NORM_OPS and _is_inner(n)]
    return found


def _is_inner(node: gs.Node) -> bool:
    """Whether a node above a norm's end belongs to it: the residual stream's sum does not."""
    if node.op != "Add":
        return node.op != "Mul" or _has_inverse(node)
    return any(n.op == "ReduceMean" for tensor in node.inputs for n in tensor.inputs)


def _has_inverse(node: gs.Node) -> bool:
    if node.inputs[0] is node.inputs[1]:
        return True
    return any(n.op in ("Reciprocal", "Div") for tensor in node.inputs for n in tensor.inputs)
