"""The skeleton of an .onnx file as a graph: weights are inputs, all else small constants.

Refused, naming file and node: opsets that are not known, operators of other domains, control flow,
weights that are not float32, large tensors that are no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs

from compiler.contracts.errors import CheckpointError
from compiler.contracts.program import CONSTANT_BYTES, OPSET, quiet_graphsurgeon, tidy
from compiler.onnx_source.expansion import EXPANDED, Kinds, expand
from compiler.onnx_source.signature import Signature, bind_lengths, recognise_signature
from compiler.onnx_source.tensors import Initializer, data_files, initializers
from compiler.onnx_source.wire import read_skeleton

# From 18 on nothing that decoders use changed its meaning; what is new is expanded.
OPSETS = range(18, 24)


@dataclass
class OnnxSource:
    """An .onnx file as read.

    Attributes:
        path: The file.
        graph: Opset 20, `tokens` tokens; possible weights are inputs, under the file's names.
        parameters: Those weights by name: float32 tensors of one or two axes.
        signature: What the other inputs and the outputs are.
        files: The .onnx and its data files, sorted.
        is_fixed: Whether the file itself fixes the number of tokens.
    """

    path: Path
    graph: gs.Graph
    parameters: Mapping[str, Initializer]
    signature: Signature
    files: tuple[Path, ...]
    is_fixed: bool


def read_source(path: Path, *, tokens: int) -> OnnxSource:
    """Read the skeleton for a call of `tokens` tokens, its weights located and not read.

    Raises:
        CheckpointError: The file is damaged, or holds what is refused.
    """
    skeleton = read_skeleton(path)
    located = initializers(path, skeleton)
    files = data_files(path, skeleton)
    model = skeleton.model
    opset = _checked_opset(path, model)
    parameters = {name: one for name, one in located.items() if _is_parameter(path, one)}
    _set_inputs(path, model, located, parameters)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _name_nodes(model)
    _check_nodes(path, model)
    quiet_graphsurgeon()
    graph = gs.import_onnx(model)
    _inline_constants(path, graph)
    signature = recognise_signature(graph, parameters, path)
    is_fixed = isinstance(list(signature.ids.shape or ())[-1], int)
    bind_lengths(signature, tokens, path)
    graph.opset = opset
    expand(graph, _kinds(path, graph), path)
    graph.opset = OPSET
    for node in graph.nodes:
        node.domain = None
        for tensor in node.outputs:
            if not any(tensor is output for output in graph.outputs):
                tensor.shape = tensor.dtype = None
    return OnnxSource(path, tidy(graph), parameters, signature, files, is_fixed)


def _checked_opset(path: Path, model: onnx.ModelProto) -> int:
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise CheckpointError(
            f"it is of opset {opset}",
            where=str(path),
            hint=f"export it at an opset from {OPSETS[0]} to {OPSETS[-1]}",
            code="onnx-opset",
        )
    return opset


def _is_parameter(path: Path, one: Initializer) -> bool:
    """Whether a tensor may be a weight; refuse one that is too large to be anything else."""
    nbytes = prod(one.shape) * one.dtype.itemsize
    is_float = one.dtype.kind in "fV"
    is_shaped = len(one.shape) in (1, 2) and prod(one.shape) > 1
    if is_float and is_shaped and one.dtype == np.float32:
        return True
    if nbytes <= CONSTANT_BYTES:
        return False
    kind = f"{one.dtype.name} of {len(one.shape)} axes"
    raise CheckpointError(
        f"tensor '{one.name}': {nbytes} bytes of {kind}, expected a float32 weight",
        where=str(path),
        hint="export the model in float32; backend.dtype says what is stored",
        code="onnx-tensor",
    )


def _set_inputs(
    path: Path,
    model: onnx.ModelProto,
    located: Mapping[str, Initializer],
    parameters: Mapping[str, Initializer],
) -> None:
    """Weights become inputs, other tensors hold their bytes; strip what is of no consequence."""
    graph = model.graph
    inputs = [value for value in graph.input if value.name not in located]
    constants = [
        onnx.numpy_helper.from_array(one.read(), name)
        for name, one in located.items()
        if name not in parameters
    ]
    for field in (graph.input, graph.initializer, graph.value_info, graph.metadata_props):
        del field[:]
    graph.input.extend(inputs)
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, one.shape)
        for name, one in parameters.items()
    )
    graph.initializer.extend(constants)
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise CheckpointError(f"'{value.name}' is a {kind}, expected a tensor", where=str(path))
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _name_nodes(model: onnx.ModelProto) -> None:
    """A node without a name is called by its first output, so that errors can name it."""
    for node in model.graph.node:
        node.name = node.name or next((output for output in node.output if output), node.op_type)


def _check_nodes(path: Path, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        problem = _problem(node)
        if problem is not None:
            raise CheckpointError(
                f"node '{node.name}': {problem}",
                where=str(path),
                hint="export the model with torch.onnx.export(..., dynamo=True), unquantized",
                code="onnx-node",
            )


def _problem(node: onnx.NodeProto) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{node.op_type} is not an operator of ONNX's own"
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return f"{node.op_type} holds a graph of its own"
    if node.op_type in EXPANDED:
        return None
    if "uantizeLinear" in node.op_type or "Integer" in node.op_type:
        return f"{node.op_type}: the model is already quantized"
    try:
        onnx.defs.get_schema(node.op_type, OPSET, "")
    except onnx.defs.SchemaError:
        return f"opset {OPSET} has no {node.op_type}"
    return None


def _kinds(path: Path, source: gs.Graph) -> Kinds:
    """Element type and shape of every tensor, as far as ONNX infers them."""
    tidy(source)
    model = gs.export_onnx(source, do_type_check=False)
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as e:
        message = " ".join(str(e).split())
        raise CheckpointError(
            f"its graph is not valid: {message}", where=str(path), code="onnx-node"
        ) from e
    found: Kinds = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim if kind.HasField("shape") else None
        shape = None if dims is None else tuple(d.dim_value or d.dim_param or None for d in dims)
        found[value.name] = (kind.elem_type, shape)
    for tensor in graph.initializer:
        found[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    return found


def _inline_constants(path: Path, graph: gs.Graph) -> None:
    """Constant nodes become constants, and each reader has one of its own."""
    for node in list(graph.nodes):
        for index, tensor in enumerate(node.inputs):
            value = _constant_value(tensor)
            if value is None:
                continue
            if value.nbytes > CONSTANT_BYTES:
                raise CheckpointError(
                    f"node '{tensor.inputs[0].name}': a constant of {value.nbytes} bytes",
                    where=str(path),
                    hint="weights must be initializers of the graph",
                    code="onnx-node",
                )
            node.inputs[index] = gs.Constant(f"{node.name}.{index}", value)


def _constant_value(tensor: gs.Tensor) -> np.ndarray | None:
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    producer = tensor.inputs[0] if tensor.inputs else None
    if producer is None or producer.op != "Constant":
        return None
    if "value" in producer.attrs:
        return np.asarray(producer.attrs["value"].values)
    name, value = next(iter(producer.attrs.items()))
    return np.asarray(value, dtype=np.float32 if "float" in name else np.int64)
