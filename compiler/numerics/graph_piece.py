"""Some nodes of a model as a model of their own."""

from collections.abc import Mapping, Sequence

import onnx

from compiler.contracts.errors import PassError
from compiler.numerics.reference_run import with_outputs


def tensor_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Element type, and shape as far as it is known, of every tensor.

    Raises:
        PassError: A node gives what no type is known of.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    for node in graph.node:
        if any(name and name not in found for name in node.output):
            raise PassError(
                f"{node.name} ({node.op_type}) gives what no type is known of",
                code="not-runnable",
            )
    return found


def graph_piece(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    made: Sequence[str],
    types: Mapping[str, onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of `nodes` that takes what they read from elsewhere and gives the tensors `made`."""
    own = {name for node in nodes for name in node.output}
    read = dict.fromkeys(name for node in nodes for name in node.input if name not in own)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    given = [name for name in read if name and name not in {one.name for one in constants}]
    graph = onnx.helper.make_graph(
        nodes, model.graph.name, [types[name] for name in given], [], constants
    )
    piece = onnx.helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    return with_outputs(piece, made)
