"""The same graph where nothing is rounded: every float tensor, constant and cast in float64.

int8 is a rounded float, and float64 there as well: a quantized value is the quotient itself. What
is quantized and at once dequantized, by the same scale and zero point, is left as it is.

It says which of two float32 numbers is right, and whether two graphs differ by rounding alone.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx.inliner

from compiler.contracts.pass_base import Arrays, Contract
from compiler.numerics.divergence import Divergence, Run, first_divergence
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tolerance import Breach, first_breach

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_ROUNDED = (*_FLOATS, onnx.TensorProto.INT8)
_DOUBLE = onnx.TensorProto.DOUBLE
# Operators with a scale, or one for each entry of an axis; dequantizing is Sub, Mul.
_SCALED = ("QuantizeLinear", "DequantizeLinear")
_INVERSE = {"Sub": "Add", "Mul": "Div"}
# What two orders of arithmetic may differ by in float64.
_UNROUNDED = Contract.close(rtol=1e-9, atol=1e-9)


def widened(arrays: Arrays) -> dict[str, np.ndarray]:
    """Every float and int8 array in float64, as `in_float64` takes them; the others as they are."""
    return {
        name: array.astype(np.float64) if array.dtype == np.int8 else array
        for name, array in widened_floats(arrays).items()
    }


def widened_floats(arrays: Arrays) -> dict[str, np.ndarray]:
    """Every float array in float64: for adapters, which are to round nothing."""
    return {
        name: array.astype(np.float64) if array.dtype.kind in "fV" else array
        for name, array in arrays.items()
    }


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float64; its functions are inlined."""
    wide = onnx.inliner.inline_local_functions(model)
    ranks = _ranks(wide)
    graph = wide.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _ROUNDED:
            value.type.tensor_type.elem_type = _DOUBLE
    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen(tensor)
    unrounded = _without_rounding(graph)
    nodes = [wide_node for node in unrounded for wide_node in _in_float64(node, ranks)]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


class RoundingCheck:
    """Two graphs that may differ by rounding alone, held to each other in float64.

    Args:
        before: The graph before a pass.
        after: The graph after it.
    """

    def __init__(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        self._models = in_float64(before), in_float64(after)
        self._before, self._after = map(ReferenceSession, self._models)

    def breach(
        self, before: Arrays, after: Arrays, wanted: Callable[[Arrays], Arrays]
    ) -> Breach | None:
        """Where they differ by more; None where they do not.

        Args:
            before: All that the graph before takes.
            after: All that the graph after takes; inputs were adapted in float64, unrounded.
            wanted: Outputs of the graph before -> what the one after must give.
        """
        exact = wanted(self._before.run(widened(before)))
        breach = first_breach(_UNROUNDED, exact, self._after.run(widened(after)))
        if breach is None:
            return None
        said = f"in float64, too, {breach.said}"
        return Breach(breach.output, breach.finding, said, breach.index)

    def divergence(
        self, before: Arrays, after: Arrays, wanted: Callable[[Arrays], Arrays]
    ) -> Divergence | None:
        """Where a breach for the same feeds begins."""
        feeds = widened(before), widened(after)
        runs = (Run(model, given) for model, given in zip(self._models, feeds, strict=True))
        return first_divergence(*runs, wanted=wanted(self._before.run(feeds[0])))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Axes of every tensor, where something is quantized or dequantized along one of them."""
    if not any(node.op_type in _SCALED for node in model.graph.node):
        return {}
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        found[value.name] = len(value.type.tensor_type.shape.dim)
    return found


def _without_rounding(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes, with an Identity for each value that is quantized to be dequantized."""
    made = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    kept = {value.name for value in graph.output}
    for node in graph.node:
        for name in node.input:
            if name in made and not _undoes(node, made[name]):
                kept.add(name)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        quantized = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantized is not None and node.input[0] not in kept:
            name = node.name or node.output[0]
            nodes.append(onnx.helper.make_node("Identity", [quantized.input[0]], node.output, name))
        elif node.op_type != "QuantizeLinear" or node.output[0] in kept:
            nodes.append(node)
    return nodes


def _undoes(node: onnx.NodeProto, quantized: onnx.NodeProto) -> bool:
    """Whether it dequantizes just as was quantized."""
    is_inverse = node.op_type == "DequantizeLinear" and node.input[0] == quantized.output[0]
    return is_inverse and node.input[1:] == quantized.input[1:] and _axis(node) == _axis(quantized)


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _in_float64(node: onnx.NodeProto, ranks: Mapping[str, int]) -> list[onnx.NodeProto]:
    if node.op_type in _SCALED:
        return _scale(node, ranks)
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _ROUNDED:
            attribute.i = _DOUBLE
        if attribute.type == onnx.AttributeProto.TENSOR:
            _widen(attribute.t)
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.asarray(onnx.helper.get_attribute_value(attribute), np.float64)
            attribute.CopyFrom(
                onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(value))
            )
    return [node]


def _scale(node: onnx.NodeProto, ranks: Mapping[str, int]) -> list[onnx.NodeProto]:
    """X / scale + zero point, or (x - zero point) * scale: onnxruntime has no kernels in float64.

    What is quantized is neither rounded nor clamped.
    """
    name, make = node.name or node.output[0], onnx.helper.make_node
    quantized, scale, *zero_point = (given for given in node.input if given)
    axis, rank = _axis(node), ranks[quantized]
    # Axes of x after the one that a scale of one axis is for.
    behind = list(range(1, rank - axis % rank)) if ranks[scale] == 1 else []
    axes = onnx.numpy_helper.from_array(np.array(behind, np.int64))
    nodes = [make("Constant", [], [f"{name}:axes"], f"{name}:axes", value=axes)]

    def along_axis(given: str, part: str) -> str:
        wide, column = f"{name}:{part}", f"{name}:{part}:column"
        nodes.append(make("Cast", [given], [wide], wide, to=_DOUBLE))
        nodes.append(make("Unsqueeze", [wide, f"{name}:axes"], [column], column))
        return column

    values = f"{name}:x"
    nodes.append(make("Cast", [quantized], [values], values, to=_DOUBLE))
    steps = [("Mul", along_axis(scale, "scale"))]
    if zero_point:
        steps.insert(0, ("Sub", along_axis(zero_point[0], "zero")))
    if node.op_type == "QuantizeLinear":
        steps = [(_INVERSE[op], given) for op, given in reversed(steps)]
    for op, given in steps[:-1]:
        shifted = f"{name}:{op}"
        nodes.append(make(op, [values, given], [shifted], shifted))
        values = shifted
    op, given = steps[-1]
    nodes.append(make(op, [values, given], list(node.output), name))
    return nodes


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _ROUNDED:
        wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
