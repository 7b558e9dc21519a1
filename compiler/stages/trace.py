"""Model family -> ProgramSet, by torch.onnx.export on meta tensors: no weight is read.

One layer of each kind is traced and repeated under its module path, so that 80 layers cost what two
do. Names are provenance: a node is called by its module path and operator, a tensor by its node:

    node_linear_3 (scopes model, model.layers.0, ..., q_proj)
 -> model.layers.7.self_attn.q_proj/MatMul
"""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.errors import TraceError
from compiler.contracts.model_base import ModelFamily
from compiler.contracts.program import (
    CONSTANT_BYTES,
    OPSET,
    Phase,
    Program,
    ProgramSet,
    quiet_graphsurgeon,
    tidy,
)
from compiler.contracts.weights import CheckpointRef, cast, source, transpose
from compiler.stitching import cache_names, is_cache, stitch_layers

if TYPE_CHECKING:
    import onnx_ir as ir

PAST_AXIS = "past"
# What the exporter assumes of the past's length while tracing; any value that is not 0, 1 or T.
_TRACED_PAST = 7


def trace(
    family: ModelFamily, checkpoint: CheckpointRef, *, window: int, context: int | None
) -> ProgramSet:
    """The two graphs of a model with the Hugging Face signature, sequence static and past symbolic.

    Args:
        family: How the configuration becomes a module.
        checkpoint: Located and verified; its tensors are the sources of the weight table.
        window: Prefill window P.
        context: KV cache positions C; None traces prefill alone.

    Raises:
        TraceError: The exporter refused the module.
    """
    phases: dict[Phase, int] = {"prefill": window}
    if context is not None:
        phases["decode"] = 1
    return ProgramSet(
        {
            phase: trace_phase(family, checkpoint, phase, tokens=tokens, context=context or window)
            for phase, tokens in phases.items()
        }
    )


def trace_phase(
    family: ModelFamily, checkpoint: CheckpointRef, phase: Phase, *, tokens: int, context: int
) -> Program:
    """One phase: trace a layer of each kind, then stitch."""
    kinds = family.layer_kinds(checkpoint.config)
    # A first layer apart from the templates, so that a template's input comes from a layer.
    traced = (kinds[0], *dict.fromkeys(kinds))
    graph = export_skeleton(family, checkpoint.config, traced, tokens=tokens)
    graph = stitch_layers(graph, [traced.index(kind, 1) for kind in kinds])
    return bind_weights(graph, checkpoint, phase, tokens=tokens, context=context, layers=len(kinds))


def export_skeleton(
    family: ModelFamily, config: Mapping[str, object], kinds: Sequence[str], *, tokens: int
) -> gs.Graph:
    """The graph of a model with these layers, every parameter an input, every node named."""
    model = _exported(family, config, kinds, tokens=tokens)
    constants = {name: np.asarray(value) for name, value in family.buffers(config).items()}
    for name, parameter in list(model.graph.initializers.items()):
        del model.graph.initializers[name]
        model.graph.inputs.append(parameter)
    import onnx_ir as ir

    quiet_graphsurgeon()
    graph = gs.import_onnx(ir.to_proto(model))
    for tensor in list(graph.inputs):
        if tensor.name in constants:
            tensor.to_constant(constants[tensor.name])
            graph.inputs.remove(tensor)
    scopes = _module_paths(model.graph)
    _inline_constants(graph)
    name_nodes(graph, scopes)
    _rename_axes(graph, tokens)
    return graph


def _exported(
    family: ModelFamily, config: Mapping[str, object], kinds: Sequence[str], *, tokens: int
) -> "ir.Model":
    import torch
    from torch.export import Dim

    layers = range(len(kinds))
    kv_heads, head_dim = family.cache_shape(config)
    with torch.device("meta"):
        module = family.module(config, kinds).eval()
        ids = torch.empty(1, tokens, dtype=torch.int64)
        mask = torch.empty(1, _TRACED_PAST + tokens, dtype=torch.int64)
        cache = [
            tuple(torch.empty(1, kv_heads, _TRACED_PAST, head_dim) for _ in range(2))
            for _ in layers
        ]
    pair = ({2: Dim.AUTO}, {2: Dim.AUTO})
    with _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (ids, mask, ids.clone(), cache),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                verbose=False,
                input_names=[
                    "input_ids",
                    "attention_mask",
                    "position_ids",
                    *cache_names("past_key_values", layers),
                ],
                output_names=["logits", *cache_names("present", layers)],
                dynamic_shapes=(None, {1: Dim.AUTO}, None, [pair for _ in layers]),
            )
        except torch.onnx.OnnxExporterError as error:
            raise TraceError(
                f"the exporter refused {type(module).__name__}: {error}",
                hint="report it with the checkpoint's config.json",
            ) from error
    assert program is not None, "the dynamo exporter returns a program"
    return program.model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says of itself: optional packages, its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _module_paths(graph: "ir.Graph") -> dict[str, str]:
    """Output name -> path of the module that computed it, from the exporter's name scopes."""
    paths: dict[str, str] = {}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [scope for scope in scopes[:-1] if not scope.startswith("_empty_nn_module_stack")]
        for output in node.outputs:
            paths[str(output.name)] = modules[-1] if modules else ""
    return paths


def _inline_constants(graph: gs.Graph) -> None:
    """Give each consumer a constant of its own: the exporter shares them between layers."""
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            value = _constant_value(tensor)
            if value is not None and value.nbytes <= CONSTANT_BYTES:
                node.inputs[index] = gs.Constant(f"{node.outputs[0].name}.{index}", value)
    tidy(graph)


def _constant_value(tensor: gs.Tensor) -> np.ndarray | None:
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.op not in ("Constant", "Cast"):
        return None
    attributes = producer.attrs
    if producer.op == "Cast":
        value = _constant_value(producer.inputs[0])
        kind = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
        return None if value is None else value.astype(kind)
    if "value" in attributes:
        return np.asarray(attributes["value"].values)
    kind = np.float32 if any("float" in name for name in attributes) else np.int64
    return np.asarray(next(iter(attributes.values())), dtype=kind)


def name_nodes(graph: gs.Graph, paths: Mapping[str, str]) -> None:
    """Name nodes `path/Op`, `path/Op_1`, ... in graph order, and tensors after their nodes."""
    seen: Counter[str] = Counter()
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        path = paths.get(node.outputs[0].name, "")
        stem = f"{path}/{node.op}" if path else node.op
        node.name = stem if not seen[stem] else f"{stem}_{seen[stem]}"
        seen[stem] += 1
        node.domain = node.domain or None
        for index, tensor in enumerate(node.outputs):
            if id(tensor) not in outputs:
                tensor.name = node.name if len(node.outputs) == 1 else f"{node.name}:{index}"
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and len(tensor.outputs) == 1:
                tensor.name = f"{node.name}.{index}"


def _rename_axes(graph: gs.Graph, tokens: int) -> None:
    """The exporter's `s17` and `s17 + 16` become `past` and `past + 16`."""
    symbols = {
        tensor.shape[2] for tensor in graph.inputs if tensor.name.startswith("past_key_values.")
    }
    assert len(symbols) == 1, f"the caches have several past axes: {sorted(map(str, symbols))}"
    names = {symbols.pop(): PAST_AXIS}
    for tensor in (*graph.inputs, *graph.outputs):
        tensor.shape = [
            axis if isinstance(axis, int) else names.get(axis, f"{PAST_AXIS} + {tokens}")
            for axis in tensor.shape or ()
        ]
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and not _is_boundary(tensor, graph):
            tensor.shape = tensor.dtype = None


def _is_boundary(tensor: gs.Tensor, graph: gs.Graph) -> bool:
    return any(tensor is other for other in (*graph.inputs, *graph.outputs))


def bind_weights(
    graph: gs.Graph,
    checkpoint: CheckpointRef,
    phase: Phase,
    *,
    tokens: int,
    context: int,
    layers: int,
) -> Program:
    """Give each parameter its expression, and each linear a weight stored [in, out].

    The traced `Transpose` of a weight moves into the expression, so that the canonical linear is
    `MatMul(x, W[in, out])`; all are float32 here, whatever the checkpoint holds.
    """
    program = Program(
        phase=phase,
        graph=graph,
        tokens=tokens,
        context=context,
        layers=layers,
        weights={},
        checkpoint_tensors={name: tensor.shape for name, tensor in checkpoint.tensors.items()},
    )
    for tensor in [t for t in graph.inputs if "." in t.name and not is_cache(t.name)]:
        name = tensor.name if tensor.name in checkpoint.tensors else "model.embed_tokens.weight"
        stored = checkpoint.tensors[name]
        assert tuple(tensor.shape) == stored.shape, f"{tensor.name}: {tensor.shape}, {stored.shape}"
        program.weights[tensor.name] = cast(source(name, stored.shape, stored.dtype), "float32")
    for node in [n for n in graph.nodes if n.op == "Transpose"]:
        weight = program.weights.get(node.inputs[0].name)
        if weight is None or node.attrs.get("perm") != [1, 0]:
            continue
        parameter = node.inputs[0]
        assert len(parameter.outputs) == 1, f"{parameter.name} has several readers"
        program.weights[parameter.name] = transpose(weight)
        parameter.shape = list(weight.shape[::-1])
        for reader in list(node.outputs[0].outputs):
            reader.inputs = [
                parameter if tensor is node.outputs[0] else tensor for tensor in reader.inputs
            ]
        node.inputs.clear()
        node.outputs.clear()
    graph.inputs = [
        *(t for t in graph.inputs if t.name not in program.weights),
        *sorted((t for t in graph.inputs if t.name in program.weights), key=lambda t: t.name),
    ]
    tidy(graph)
    program.prune_parameters()
    return program
