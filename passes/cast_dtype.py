"""Linears and what lies between them compute in 16 bits; norms, attention and angles in float32.

    embedding, linears, bias, residual, gated activation, rotation:   float32 -> `dtype`
    norm:      Mul(weight, x * rsqrt(mean(x^2) + epsilon))
            -> Mul(weight, Cast(Cast(x, float32) * rsqrt(..), dtype))
    rotary:    Cos(position * inverse frequency)  ->  Cast(Cos(..), dtype)
    attention: scores, mask, softmax and context stay float32, between Casts
    logits  -> Cast(logits, float32)

The signature stays as it is: logits and KV caches are float32 at the boundary, new keys and values
rounded to `dtype` where they are projected, so runners and `plan-kv-cache` need not know. Attention
reads the caches as they are, in float32: no mask overflows to infinity, no product of two large
activations does, and a fully masked row is as finite as before. A norm's square is float32 too.

A node stays float32 unless it is known to be safe: it becomes 16 bits wide where it is a linear,
an embedding, a sum or product with a vector parameter, or arithmetic and layout over values that
are 16 bits wide already (and cos and sin). Where a wide value meets a narrow one, the narrow one is
widened. Fused operators are float32 inside, with Casts around them; so it stands after them, and
before what decides how the weights are stored (`annotate-int8-qdq`, `store-weights`). Declines,
with the reason, a linear whose weight is no float32 parameter, a node whose constant overflows
`dtype`, and a graph that computes in 16 bits already.

Numerically: `adapt_weights` states the rounded weights. Over those, every narrow operation rounds
its result once, by the unit roundoff u (2^-11 or 2^-8) of its size; see `Contract.roundings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import DTYPES, cast, transpose
from passes._match import add_node, constant, producer, replace_uses, through

Dtype = Literal["float16", "bfloat16"]
# What a tensor is: `narrow` (of `dtype`), `wide` (float32), an `angle` (made of cos or sin; wide,
# but narrowed where it meets a narrow value), `free` (a parameter or constant, as its reader is).
_Width = Literal["narrow", "wide", "angle", "free"]

_FLOAT = int(onnx.TensorProto.FLOAT)
_ONNX = {
    "float16": int(onnx.TensorProto.FLOAT16),
    "bfloat16": int(onnx.TensorProto.BFLOAT16),
}
# Safe on narrow values: they round once, or move values about.
_ARITHMETIC = ("Add", "Sub", "Mul", "Neg", "Sigmoid")
_LAYOUT = (
    "Concat",
    "Expand",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_WEIGHT_LAYOUT = ("Cast", "DequantizeLinear", "Transpose")


class _Widths:
    """The width of every float tensor, decided from inputs to outputs; nothing is rewritten."""

    def __init__(self, program: Program, dtype: Dtype) -> None:
        self.dtype = dtype
        self.largest = float(ml_dtypes.finfo(DTYPES[dtype]).max)
        self.program = program
        self.types = _element_types(program)
        self.of_tensor: dict[int, _Width] = {}
        self.of_node: dict[int, _Width] = {}
        self.skips: list[Skip] = []
        for tensor in program.graph.inputs:
            self.of_tensor[id(tensor)] = "free" if tensor.name in program.weights else "wide"
        for node in program.graph.nodes:
            width = self._of(node)
            self.of_node[id(node)] = width
            self.of_tensor.update((id(tensor), width) for tensor in node.outputs)

    def is_float(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor holds float32 before the pass."""
        value = constant(tensor)
        if value is not None:
            return value.dtype == np.float32
        return self.types.get(tensor.name) == _FLOAT

    def width(self, tensor: gs.Tensor) -> _Width:
        """Of a float tensor."""
        return "free" if isinstance(tensor, gs.Constant) else self.of_tensor[id(tensor)]

    def _parameter(self, tensor: gs.Tensor, axes: int) -> bool:
        weight = self.program.weights.get(tensor.name)
        return weight is not None and weight.dtype == "float32" and len(weight.shape) == axes

    def _of(self, node: gs.Node) -> _Width:
        if node.domain or not any(self.is_float(tensor) for tensor in node.outputs):
            return "wide"
        if node.op in ("Cos", "Sin"):
            return "angle"
        if node.op == "MatMul":
            return self._of_product(node)
        if node.op == "Gather" and self._parameter(node.inputs[0], axes=2):
            return "narrow"
        if node.op in ("Add", "Mul") and any(self._parameter(t, axes=1) for t in node.inputs):
            return "narrow"
        return self._of_rest(node) if node.op in (*_ARITHMETIC, *_LAYOUT) else "wide"

    def _of_product(self, node: gs.Node) -> _Width:
        if self._parameter(node.inputs[1], axes=2):
            return "narrow"
        stored = through(node.inputs[1], *_WEIGHT_LAYOUT)
        if stored.name in self.program.weights:
            reason = f"it does not read {stored.name} itself as float32 [in, out]"
            self.skips.append(Skip(node.name, reason))
        return "wide"

    def _of_rest(self, node: gs.Node) -> _Width:
        """Arithmetic and layout: as narrow as what it reads."""
        floats = [tensor for tensor in node.inputs if self.is_float(tensor)]
        widths = {self.width(tensor) for tensor in floats} - {"free"}
        is_square = len(floats) == 2 and floats[0] is floats[1]
        if is_square or "wide" in widths or not widths:
            return "wide"
        if widths == {"angle"}:
            return "angle"
        values = [value for value in map(constant, floats) if value is not None]
        over = [value for value in values if np.abs(value).max(initial=0) > self.largest]
        if over:
            self.skips.append(
                Skip(node.name, f"its constant {over[0].ravel()[0]:g} overflows {self.dtype}")
            )
            return "wide"
        return "narrow"


def _element_types(program: Program) -> Mapping[str, int]:
    graph = onnx.shape_inference.infer_shapes(program.model()).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _already_narrow(program: Program, types: Mapping[str, int]) -> Skip | None:
    """The first node that computes in 16 bits, whoever made it so."""
    for node in program.graph.nodes:
        for tensor in node.outputs:
            name = next((n for n, one in _ONNX.items() if types.get(tensor.name) == one), None)
            if name is not None:
                return Skip(node.name, f"it gives {name} already")
    return None


def _cast_parameter(program: Program, parameter: gs.Tensor, dtype: Dtype) -> None:
    weight = program.weights[parameter.name]
    is_turned = weight.op == "transpose"
    program.weights[parameter.name] = (
        transpose(cast(transpose(weight), dtype)) if is_turned else cast(weight, dtype)
    )
    parameter.dtype = np.dtype(np.float16) if dtype == "float16" else _ONNX[dtype]


def _converted(graph: gs.Graph, tensor: gs.Tensor, to: int) -> gs.Tensor:
    """`tensor` behind a Cast; one for all its readers, named after what makes it."""
    made = producer(tensor)
    stem = made.name if made is not None and len(made.outputs) == 1 else tensor.name
    return add_node(graph, "Cast", f"{stem}/Cast", [tensor], attrs={"to": to})


def _widen_output(graph: gs.Graph, output: gs.Tensor) -> None:
    """The graph's output keeps its name and type: a Cast makes it from what was computed."""
    (node,) = output.inputs
    inner = gs.Variable(node.name)
    readers = list(output.outputs)
    node.outputs = [inner if tensor is output else tensor for tensor in node.outputs]
    replace_uses(graph, output, inner, readers=readers)
    add_node(graph, "Cast", f"{node.name}/Cast", [inner], attrs={"to": _FLOAT}, output=output)


def cast_dtype(program: Program, dtype: Dtype) -> PassReport:
    """Decide every node's width, then put Casts where widths meet."""
    graph, widths = program.graph, _Widths(program, dtype)
    found = _already_narrow(program, widths.types)
    if found is not None:
        return PassReport(skips=(found,))
    narrow = [node for node in graph.nodes if widths.of_node[id(node)] == "narrow"]
    if not narrow:
        reason = "no linear and no embedding reads a float32 parameter"
        return PassReport(skips=(*widths.skips, Skip("graph", reason)))
    ids = {id(node) for node in narrow}
    tensors = [*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)]
    constants = [t for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant)]
    for tensor in {id(tensor): tensor for tensor in (*tensors, *constants)}.values():
        if not widths.is_float(tensor):
            continue
        width = widths.width(tensor)
        readers = [n for n in tensor.outputs if (id(n) in ids) != (width == "narrow")]
        if not readers:
            continue
        if tensor.name in program.weights and len(readers) == len(tensor.outputs):
            _cast_parameter(program, tensor, dtype)
            continue
        to = _FLOAT if width == "narrow" else _ONNX[dtype]
        replace_uses(graph, tensor, _converted(graph, tensor, to), readers=readers)
    for output in [o for o in graph.outputs if o.inputs and id(o.inputs[0]) in ids]:
        _widen_output(graph, output)
    for node in narrow:
        for tensor in node.outputs:
            tensor.dtype = None  # as inferred
    tidy(graph)
    return PassReport(tuple(node.name for node in narrow), tuple(widths.skips))


@dataclass(frozen=True)
class CastDtype(Pass):
    """Linears, residuals and activations in float16 or bfloat16; the rest stays float32."""

    name: ClassVar = "cast-dtype"
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-attention",
        "fuse-gate-up",
        "fuse-qkv",
        "fuse-rms-norm",
        "fuse-rotary",
        "fuse-silu-mul",
        "pad-vocabulary",
    )
    dtype: Dtype

    def promise(self) -> Contract:
        """A number of roundings of `dtype`, and nothing else."""
        return Contract.roundings(self.dtype)

    def run(self, program: Program) -> PassReport:
        """Narrow what is known to be safe; decline what is not, with the reason."""
        return cast_dtype(program, self.dtype)

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """The parameters that became narrow are rounded to `dtype`."""
        new = {name for name, weight in program.weights.items() if weight.dtype == self.dtype}
        return {
            name: value.astype(DTYPES[self.dtype]).astype(value.dtype) if name in new else value
            for name, value in old.items()
        }
