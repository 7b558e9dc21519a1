"""One traced layer, repeated: the skeleton of 80 layers at the price of two.

A layer's nodes and tensors are those whose names lie under `model.layers.<i>`, and its caches. A
copy takes them over under another index; what enters a layer from elsewhere is shared.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs

from compiler.contracts.program import tidy
from compiler.contracts.provenance import layer_of

_LAYER = re.compile(r"^model\.layers\.(\d+)(?=[./]|$)")
_CACHE = re.compile(r"^(past_key_values|present)\.(\d+)(?=\.)")


def is_cache(name: str) -> bool:
    """Whether a graph input or output is a layer's cache."""
    return _CACHE.match(name) is not None


def cache_names(prefix: str, layers: Iterable[int]) -> list[str]:
    """`past_key_values.0.key`, `past_key_values.0.value`, `past_key_values.1.key`, ..."""
    return [f"{prefix}.{index}.{kind}" for index in layers for kind in ("key", "value")]


def _moved(name: str, index: int) -> str:
    name = _LAYER.sub(f"model.layers.{index}", name)
    return _CACHE.sub(lambda found: f"{found[1]}.{index}", name)


def stitch_layers(graph: gs.Graph, templates: Sequence[int]) -> gs.Graph:
    """A graph whose layer i is a copy of the traced layer `templates[i]`.

    The traced graph begins with one more layer, of the same kind as the second, so that every
    template takes the residual stream from a layer before it. Other tensors that enter a layer
    (cos, sin, the mask) are shared by all.
    """
    layers: dict[int, list[gs.Node]] = {}
    around: list[gs.Node] = []
    for node in graph.nodes:
        index = layer_of(node.name)
        (around if index is None else layers.setdefault(index, [])).append(node)
    streams = [_stream_out(layers[index], graph) for index in range(len(layers))]
    entry = _counterpart(layers[1], layers[0], streams[0])

    tensors = {t.name: t for t in (*graph.inputs, *graph.outputs)}
    stitched: dict[str, gs.Tensor] = {}
    nodes = list(around)
    stream = entry
    for index, template in enumerate(templates):
        replaced = {id(streams[template - 1]): stream}
        nodes += [_moved_node(node, index, replaced, stitched) for node in layers[template]]
        stream = stitched[_moved(streams[template].name, index)]
    for node in around:
        node.inputs = [
            stream if tensor is streams[-1] else stitched.get(tensor.name, tensor)
            for tensor in node.inputs
        ]

    count = range(len(templates))
    parameters = [t for t in stitched.values() if not is_cache(t.name) and not t.inputs]
    graph.inputs = [
        *(t for t in graph.inputs if not _is_per_layer(t.name)),
        *(stitched[name] for name in cache_names("past_key_values", count)),
        *(t for t in parameters if isinstance(t, gs.Variable)),
    ]
    graph.outputs = [tensors["logits"], *(stitched[name] for name in cache_names("present", count))]
    graph.nodes = nodes
    return tidy(graph)


def _stream_out(nodes: Sequence[gs.Node], graph: gs.Graph) -> gs.Tensor:
    """The one tensor of a layer that is read outside of it."""
    own = {id(node) for node in nodes}
    found = [
        tensor
        for node in nodes
        for tensor in node.outputs
        if any(id(reader) not in own for reader in tensor.outputs)
    ]
    assert len(found) == 1, f"a layer passes on {[tensor.name for tensor in found]}"
    return found[0]


def _counterpart(
    nodes: Sequence[gs.Node], others: Sequence[gs.Node], tensor: gs.Tensor
) -> gs.Tensor:
    """What `others` reads in the place where `nodes`, a layer of the same kind, reads `tensor`."""
    for node, other in zip(nodes, others, strict=True):
        for index, candidate in enumerate(node.inputs):
            if candidate is tensor:
                return other.inputs[index]
    raise AssertionError(f"{tensor.name} is not read by the next layer")


def _moved_node(
    node: gs.Node, index: int, replaced: Mapping[int, gs.Tensor], stitched: dict[str, gs.Tensor]
) -> gs.Node:
    def moved(tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) in replaced:
            return replaced[id(tensor)]
        if not _is_per_layer(tensor.name):
            return tensor
        name = _moved(tensor.name, index)
        if name not in stitched:
            stitched[name] = (
                gs.Constant(name, tensor.values)
                if isinstance(tensor, gs.Constant)
                else gs.Variable(name, dtype=tensor.dtype, shape=tensor.shape)
            )
        return stitched[name]

    return gs.Node(
        op=node.op,
        name=_moved(node.name, index),
        attrs=dict(node.attrs),
        inputs=[moved(tensor) for tensor in node.inputs],
        outputs=[moved(tensor) for tensor in node.outputs],
        domain=node.domain,
    )


def _is_per_layer(name: str) -> bool:
    return layer_of(name) is not None
