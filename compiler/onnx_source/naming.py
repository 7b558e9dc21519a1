"""Names of provenance for a graph whose own names mean nothing.

    val_72 = MatMul(mul_101, val_71)
 -> model.layers.0.self_attn.q_proj/MatMul
    = MatMul(model.layers.0.input_layernorm/Mul_1, model.layers.0.self_attn.q_proj.weight)

A node of a recognised module has that module's path; any other has the path of the region that its
inputs come from: between q, k, v and o it is `self_attn`, between gate and down `mlp`, between them
the layer. Each use of a weight is a parameter of its own, so that tensors which an exporter shares
because their bytes are equal are told apart.
"""

from collections import Counter
from collections.abc import Mapping
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import CONSTANT_BYTES, tidy
from compiler.contracts.weights import StoredTensor
from compiler.onnx_source.reading import OnnxSource
from compiler.onnx_source.roles import Roles, norm_nodes
from compiler.onnx_source.walking import above

_ROTARY = "model.rotary_emb"
# Where what a module gives goes on: a part of its path.
_INSIDE = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn"} | {
    "gate_proj": "mlp",
    "up_proj": "mlp",
}


def name_graph(
    source: OnnxSource, roles: Roles, positions: gs.Tensor
) -> dict[str, tuple[str, StoredTensor]]:
    """Name every input, output, node and tensor; small tensors that are no module's stay constants.

    Returns:
        Parameter -> (name of the tensor that it reads, where that lies). A head tied to the
        embedding reads the embedding.
    """
    graph = source.graph
    modules = _modules(roles)
    paths, bound = _bind_modules(source, modules)
    _name_signature(source, roles, positions)
    _name_regions(graph, modules, paths)
    _name_nodes(graph, paths)
    bound |= _bind_rest(source)
    graph.inputs = [
        source.signature.ids,
        source.signature.mask,
        positions,
        *(cache.past for layer in roles.layers for cache in (layer.key, layer.value)),
        *sorted((tensor for tensor, _ in bound.values()), key=lambda tensor: tensor.name),
    ]
    graph.outputs = [
        source.signature.logits,
        *(cache.present for layer in roles.layers for cache in (layer.key, layer.value)),
    ]
    tidy(graph)
    embedding = bound["model.embed_tokens.weight"][1]
    return {
        name: (
            "model.embed_tokens.weight" if file_name == embedding else name,
            _stored(source, file_name),
        )
        for name, (_, file_name) in bound.items()
    }


def _modules(roles: Roles) -> dict[str, gs.Node]:
    inner = {
        f"model.layers.{index}.{name}": node
        for index, layer in enumerate(roles.layers)
        for name, node in layer.modules.items()
    }
    return {**roles.around, **inner}


def _stored(source: OnnxSource, name: str) -> StoredTensor:
    stored = source.parameters[name].stored
    assert stored is not None, f"{name} is float32 and has a place"
    return stored


def _bind_modules(
    source: OnnxSource, modules: Mapping[str, gs.Node]
) -> tuple[dict[int, str], dict[str, tuple[gs.Variable, str]]]:
    """Paths of the modules' nodes, and their parameters: name -> (input, name in the file)."""
    paths: dict[int, str] = {}
    bound: dict[str, tuple[gs.Variable, str]] = {}
    for path, node in modules.items():
        own = norm_nodes(node) if node.op == "Mul" else [node]
        tensor = node.inputs[0 if node.op == "Gather" else 1]
        if node.op == "MatMul":
            turned = tensor.inputs[0] if tensor.inputs else None
            if turned is not None:  # each reader has a Transpose of its own from here on
                weight = gs.Variable(f"{path}.turned")
                attrs, read = dict(turned.attrs), turned.inputs[0]
                copy = gs.Node("Transpose", weight.name, attrs, inputs=[read], outputs=[weight])
                source.graph.nodes.append(copy)
                node.inputs[1] = weight
                own.append(copy)
            own += _bias_sums(source, node)
        for one in own:
            paths[id(one)] = path
            kind = "bias" if one.op == "Add" and node.op == "MatMul" else "weight"
            _bind(source, one, f"{path}.{kind}", bound)
    return paths, bound


def _bias_sums(source: OnnxSource, linear: gs.Node) -> list[gs.Node]:
    """The sum of a linear with a weight of one axis."""
    sums = [node for node in linear.outputs[0].outputs if node.op == "Add"]
    return [
        node
        for node in sums
        if len(sums) == 1
        and any(t.name in source.parameters and len(t.shape) == 1 for t in node.inputs)
    ]


def _bind(
    source: OnnxSource,
    node: gs.Node,
    name: str,
    bound: dict[str, tuple[gs.Variable, str]],
) -> None:
    """Give the weight that `node` reads to its module, as an input of its own."""
    for index, tensor in enumerate(node.inputs):
        if tensor.inputs or tensor.name not in source.parameters:
            continue
        assert name not in bound, f"{name} is bound twice"
        own = gs.Variable(name, dtype=np.dtype(np.float32), shape=list(tensor.shape))
        bound[name] = (own, tensor.name)
        node.inputs[index] = own


def _bind_rest(source: OnnxSource) -> dict[str, tuple[gs.Variable, str]]:
    """Small tensors of no module become constants, large ones parameters named by their reader."""
    bound: dict[str, tuple[gs.Variable, str]] = {}
    for tensor in [t for t in source.graph.inputs if t.name in source.parameters]:
        one = source.parameters[tensor.name]
        value = one.read() if prod(one.shape) * one.dtype.itemsize <= CONSTANT_BYTES else None
        for node in list(tensor.outputs):
            for index, given in enumerate(node.inputs):
                if given is not tensor:
                    continue
                name = f"{node.name}.{index}"
                if value is not None:
                    node.inputs[index] = gs.Constant(name, value)
                    continue
                own = gs.Variable(name, dtype=one.dtype, shape=list(one.shape))
                bound[name] = (own, tensor.name)
                node.inputs[index] = own
    return bound


def _name_signature(source: OnnxSource, roles: Roles, positions: gs.Tensor) -> None:
    """Names of inputs and outputs; other tensors are named by their nodes, so none can clash."""
    signature = source.signature
    signature.ids.name, signature.mask.name = "input_ids", "attention_mask"
    positions.name, signature.logits.name = "position_ids", "logits"
    for index, layer in enumerate(roles.layers):
        for kind, cache in (("key", layer.key), ("value", layer.value)):
            cache.past.name = f"past_key_values.{index}.{kind}"
            cache.present.name = f"present.{index}.{kind}"


def _name_regions(graph: gs.Graph, modules: Mapping[str, gs.Node], paths: dict[int, str]) -> None:
    """A path for every node that no module owns, from the regions that its inputs come from."""
    angles = [node for node in graph.nodes if node.op in ("Cos", "Sin")]
    rotary = {id(node) for node in (*angles, *above(*angles))}
    regions: dict[int, str] = {}
    tidy(graph)
    for node in graph.nodes:
        path = paths.get(id(node))
        if path is None:
            given = [regions[id(t)] for t in node.inputs if id(t) in regions]
            path = max(given, key=_depth, default="model")
            if id(node) in rotary and path == "model":
                path = _ROTARY
            paths[id(node)] = path
        region = _region(path) if path in modules else path
        regions |= {id(tensor): region for tensor in node.outputs}


def _region(module: str) -> str:
    """Where the values of a module go on: the q of a layer to its attention, its o to the layer."""
    parent, _, own = module.rpartition(".")
    if own in _INSIDE:
        return parent
    return parent.removesuffix(".self_attn").removesuffix(".mlp")


def _depth(path: str) -> tuple[int, int]:
    """The later layer first, then the inner module."""
    parts = path.split(".")
    layer = int(parts[2]) if path.startswith("model.layers.") else -1
    return layer, len(parts)


def _name_nodes(graph: gs.Graph, paths: Mapping[int, str]) -> None:
    """`path/Op`, `path/Op_1`, ... in graph order; tensors and constants after their nodes."""
    seen: Counter[str] = Counter()
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        path = paths[id(node)]
        stem = f"{path}/{node.op}" if path else node.op
        node.name = stem if not seen[stem] else f"{stem}_{seen[stem]}"
        seen[stem] += 1
        for index, tensor in enumerate(node.outputs):
            if id(tensor) not in outputs:
                tensor.name = node.name if len(node.outputs) == 1 else f"{node.name}:{index}"
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                tensor.name = f"{node.name}.{index}"
