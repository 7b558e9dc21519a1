"""Which tensor of a program's graph is each tap, at any point of the pipeline.

norm1, norm2, norm    what leaves the module `model.layers.L.input_layernorm`, ...
embed, resid1, resid2 what such a module reads
q .. down             the product with the weight of `model.layers.L.self_attn.q_proj`, ..., and its
                      bias; of a product with a joined weight, its part of the Split behind it
attn, act             what o's and down's product reads, before it is rounded
q_rot                 what the scores' product reads beside the keys, before it is rounded, and
                      before any scale, that of LogN too: what the rotary embedding gives, as
                      transformers has it
k_rot                 the rows that are joined to, or written into, the cache of keys, before they
                      are rounded
keys, values          outputs of the graph; of a cache that is stored narrowly, what it widens to
logits                an output of the graph

Modules are read off the names of nodes, weights off the weight table, the rest off the graph. What
an operator has swallowed is left out, and so is what cannot be told for certain.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.contracts.program import Program
from compiler.contracts.taps import Tap, taps_of
from compiler.contracts.weights import Weight, unpacked
from compiler.numerics.rounded_activations import before_rounding
from compiler.numerics.tap_place import Span, TapPlace

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# What may stand between a parameter and its product, a cache and the scores' product, and the
# queries and that product.
_WEIGHT_LAYOUT = ("Cast", "Reshape", "Transpose", "DequantizeLinear", "UnpackedWeight")
_KEY_LAYOUT = ("Cast", "Expand", "Identity", "Mul", "Reshape", "Transpose", "Unsqueeze")
_QUERY_LAYOUT = ("Cast", "Identity", "Reshape")
# ONNX's number of float32, to which a Cast does not round.
_FLOAT = 1


def program_taps(program: Program) -> dict[Tap, TapPlace]:
    """The taps that the graph holds, in the order of computation."""
    finder = _Finder(program)
    found = finder.around()
    for layer in range(program.layers):
        found |= finder.of_layer(layer)
    places = {tap: found[tap] for tap in taps_of(program.layers)}
    return {tap: place for tap, place in places.items() if place is not None}


@dataclass(frozen=True)
class _Linear:
    """A product with the weight of one module, or with one that is joined of several."""

    product: "gs.Node"
    # Of the joined weight: outputs of each part, and which of them is this module's.
    widths: tuple[int, ...]
    part: int


class _Finder:
    """The searches in one graph."""

    def __init__(self, program: Program) -> None:
        self._weights, self._layers = program.weights, program.layers
        self._outputs = {tensor.name: tensor for tensor in program.graph.outputs}
        self._modules: dict[str, list[gs.Node]] = {}
        for node in program.graph.nodes:
            self._modules.setdefault(_module(node), []).append(node)
        self._tokens = _made_of(program, "input_ids")
        self._linears = self._linears_by_module(program)

    def around(self) -> dict[Tap, TapPlace | None]:
        """The taps outside the layers."""
        return {
            Tap(None, "embed"): _place(self._read_by("model.layers.0.input_layernorm")),
            Tap(None, "norm"): _place(self._leaving("model.norm")),
            Tap(None, "logits"): _place(self._outputs.get("logits"), span="last"),
        }

    def of_layer(self, layer: int) -> dict[Tap, TapPlace | None]:
        """The taps of one layer."""
        path = f"model.layers.{layer}"
        is_last = layer == self._layers - 1
        after = "model.norm" if is_last else f"model.layers.{layer + 1}.input_layernorm"
        keys, values = (self._outputs.get(f"present.{layer}.{kind}") for kind in ("key", "value"))
        places = {
            "norm1": _place(self._leaving(f"{path}.input_layernorm")),
            "q": _place(self._linear(f"{path}.self_attn.q_proj")),
            "k": _place(self._linear(f"{path}.self_attn.k_proj")),
            "v": _place(self._linear(f"{path}.self_attn.v_proj")),
            "q_rot": _place(self._queries(keys)),
            "k_rot": _appended(keys),
            "keys": _cache(keys),
            "values": _cache(values),
            "attn": _place(self._operand(f"{path}.self_attn.o_proj")),
            "o": _place(self._linear(f"{path}.self_attn.o_proj")),
            "resid1": _place(self._read_by(f"{path}.post_attention_layernorm")),
            "norm2": _place(self._leaving(f"{path}.post_attention_layernorm")),
            "gate": _place(self._linear(f"{path}.mlp.gate_proj")),
            "up": _place(self._linear(f"{path}.mlp.up_proj")),
            "act": _place(self._operand(f"{path}.mlp.down_proj")),
            "down": _place(self._linear(f"{path}.mlp.down_proj")),
            "resid2": _place(self._read_by(after)),
        }
        return {Tap(layer, point): place for point, place in places.items()}

    # -- modules, by the names of their nodes

    def _leaving(self, module: str) -> "gs.Tensor | None":
        """What a module's nodes make and others read."""
        return _one(
            tensor
            for node in self._modules.get(module, ())
            for tensor in node.outputs
            if id(tensor) in self._tokens and any(_module(n) != module for n in tensor.outputs)
        )

    def _read_by(self, module: str) -> "gs.Tensor | None":
        """What a module's nodes read and others make; parameters and lengths aside."""
        return _one(
            tensor
            for node in self._modules.get(module, ())
            for tensor in node.inputs
            if id(tensor) in self._tokens and any(_module(n) != module for n in tensor.inputs)
        )

    # -- linears, by the weights that they read

    def _linears_by_module(self, program: Program) -> dict[str, _Linear]:
        found: dict[str, list[_Linear]] = {}
        for parameter in program.graph.inputs:
            stored = program.weights.get(parameter.name)
            weight = None if stored is None else unpacked(stored)
            if weight is None or len(weight.shape) != 2:
                continue
            parts = _parts(weight)
            widths = tuple(part.shape[0] for part in parts)
            for product in _products(parameter):
                for index, part in enumerate(map(_bare, parts)):
                    if part.op == "source":
                        module = str(part.attributes[0]).removesuffix(".weight")
                        found.setdefault(module, []).append(_Linear(product, widths, index))
        # A weight that two products read does not say which of them is its module.
        return {module: linears[0] for module, linears in found.items() if len(linears) == 1}

    def _operand(self, module: str) -> "gs.Tensor | None":
        """The activations that a linear's product reads."""
        linear = self._linears.get(module)
        return None if linear is None else _unrounded(linear.product.inputs[0])

    def _linear(self, module: str) -> "gs.Tensor | None":
        """What a linear gives: its product, its bias added, its part of a joined one."""
        linear = self._linears.get(module)
        if linear is None:
            return None
        (output,) = linear.product.outputs
        added = _only_reader(output, "Add")
        if added is not None and any(self._is_vector(tensor) for tensor in added.inputs):
            (output,) = added.outputs
        if len(linear.widths) == 1:
            return output
        split = _only_reader(output, "Split")
        if split is None or _lengths(split) != linear.widths:
            return None
        return split.outputs[linear.part]

    def _is_vector(self, tensor: "gs.Tensor") -> bool:
        made = _producer(tensor)
        parameter = made.inputs[0] if made is not None and made.op == "Cast" else tensor
        weight = self._weights.get(parameter.name)
        return weight is not None and len(weight.shape) == 1

    # -- attention, from the cache of keys

    def _queries(self, keys: "gs.Tensor | None") -> "gs.Tensor | None":
        """What the product with the keys reads beside them, above a scale where there is one."""
        found: list[gs.Tensor] = []
        pending = [] if keys is None else [keys]
        while pending:
            tensor = pending.pop()
            for node in tensor.outputs:
                beside = [t for t in node.inputs if t is not tensor and id(t) in self._tokens]
                if node.op in ("MatMul", "FusedAttention") and node.inputs[1] is tensor:
                    found.append(node.inputs[0])
                elif node.op == "WidenedCache" or (node.op in _KEY_LAYOUT and not beside):
                    pending.append(node.outputs[0])
        queries = _one(found)
        return None if queries is None else self._unscaled(_unrounded(queries))

    def _unscaled(self, queries: "gs.Tensor") -> "gs.Tensor":
        """Behind products with a number, or with what depends on positions alone (LogN)."""
        scaled = _producer(_through(queries, *_QUERY_LAYOUT))
        if scaled is None or scaled.op != "Mul":
            return queries
        factors = [tensor for tensor in scaled.inputs if id(tensor) in self._tokens]
        return self._unscaled(factors[0]) if len(factors) == 1 else queries


def _module(node: "gs.Node") -> str:
    """`model.norm` of `model.norm/FusedRMSNorm/Cast`."""
    return node.name.partition("/")[0]


def _producer(tensor: "gs.Tensor") -> "gs.Node | None":
    return tensor.inputs[0] if tensor.inputs else None


def _only_reader(tensor: "gs.Tensor", op: str) -> "gs.Node | None":
    readers = list(tensor.outputs)
    return readers[0] if len(readers) == 1 and readers[0].op == op else None


def _through(tensor: "gs.Tensor", *ops: str) -> "gs.Tensor":
    """Up through operators with one input that matters."""
    node = _producer(tensor)
    while node is not None and node.op in ops:
        tensor = node.inputs[0]
        node = _producer(tensor)
    return tensor


def _unrounded(tensor: "gs.Tensor") -> "gs.Tensor":
    """Above its rounding to 16 bits or int8, and the Casts around that, where there is one."""
    node = _producer(tensor)
    wide = None if node is None else before_rounding(node)
    if wide is not None:
        return wide
    rounded = _producer(_through(tensor, "Cast"))
    if rounded is None or rounded.op != "QuantizedTokens":
        return tensor
    cast = _producer(rounded.inputs[0])
    is_around = cast is not None and cast.name.startswith(f"{rounded.name}/")
    return cast.inputs[0] if cast is not None and is_around else rounded.inputs[0]


def _made_of(program: Program, name: str) -> set[int]:
    """Ids of the tensors whose values depend on an input's."""
    pending: list[gs.Tensor] = [tensor for tensor in program.graph.inputs if tensor.name == name]
    found: set[int] = set()
    while pending:
        for node in pending.pop().outputs:
            for tensor in node.outputs if node.op != "Shape" else ():
                if id(tensor) not in found:
                    found.add(id(tensor))
                    pending.append(tensor)
    return found


def _one(tensors: "Iterable[gs.Tensor]") -> "gs.Tensor | None":
    """The one value among tensors that differ by Casts at most; None where there are several.

    A Cast that is made for one reader is left below it; of a value that others read, too, the
    tensor that all of them read is taken, so that what replaces it reaches them all.
    """
    found = list({id(tensor): tensor for tensor in tensors}.values())
    if not found:
        return None
    if len(found) > 1:
        sources = {id(source): source for source in (_through(one, "Cast") for one in found)}
        return next(iter(sources.values())) if len(sources) == 1 else None
    tensor = found[0]
    source = _through(tensor, "Cast")
    return source if len(source.outputs) > 1 else tensor


def _parts(weight: Weight) -> tuple[Weight, ...]:
    """What a linear's outputs are joined of, one after the other."""
    bare = _bare(weight)
    return bare.operands if bare.op == "concat" else (bare,)


def _bare(weight: Weight) -> Weight:
    """A tensor of the checkpoint, or what is joined or cut, whatever its layout and dtype."""
    while weight.op in ("transpose", "cast", "quantize", "file"):
        (weight,) = weight.operands
    return weight


def _products(parameter: "gs.Tensor") -> "Iterator[gs.Node]":
    """The nodes that multiply by a parameter, whatever its layout."""
    for node in parameter.outputs:
        if node.op in _WEIGHT_LAYOUT and node.inputs[0] is parameter:
            yield from _products(node.outputs[0])
        elif len(node.inputs) > 1 and node.inputs[1] is parameter:
            yield node


def _lengths(split: "gs.Node") -> tuple[int, ...]:
    """Of a Split on the last axis; empty where they are computed."""
    values = getattr(split.inputs[1], "values", None) if len(split.inputs) > 1 else None
    is_last = split.attrs.get("axis") == -1
    return tuple(map(int, values)) if is_last and values is not None else ()


def _place(tensor: "gs.Tensor | None", *, span: Span = "call") -> TapPlace | None:
    return None if tensor is None or not tensor.inputs else TapPlace(tensor.name, span=span)


def _cache(present: "gs.Tensor | None") -> TapPlace | None:
    if present is None or not present.inputs or present.shape is None:
        return None
    # Of a cache that is stored narrowly, what attention reads.
    wide = _only_reader(present, "WidenedCache") or _only_reader(present, "Cast")
    tensor = present if wide is None else wide.outputs[0]
    return TapPlace(tensor.name, 0 if len(present.shape) == 3 else -2, "cache")


def _appended(present: "gs.Tensor | None") -> TapPlace | None:
    """The new rows of a cache: [1, K, T, d] of a Concat, [T, K, d] of a CacheUpdate."""
    node = None if present is None else _producer(present)
    if node is None or node.op not in ("Concat", "CacheUpdate") or not node.inputs[1].inputs:
        return None
    rows = _before_rounding(node.inputs[1])
    return TapPlace(rows.name, -2 if node.op == "Concat" else 0)


def _before_rounding(rows: "gs.Tensor") -> "gs.Tensor":
    """What is rounded to the cache's type; the rows themselves where nothing is."""
    node = _producer(rows)
    is_narrowed = node is not None and node.op == "Cast" and node.attrs["to"] != _FLOAT
    is_rounded = is_narrowed or (node is not None and node.op == "QuantizedRows")
    return node.inputs[0] if node is not None and is_rounded else rows
