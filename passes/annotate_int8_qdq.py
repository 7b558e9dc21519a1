"""The weights of chosen linears become int8 with one scale for each output channel.

    MatMul(x, W[in, out])
 -> MatMul(x, DequantizeLinear(Wq[in, out] int8, scale[out], axis 1))              operator: qdq
 -> Vastai::QuantizedLinearPerChannel(x, Wq[out, in] int8, scale[out])             operator: vastai

Symmetric, without zero point: scale = absmax / 127 of the channel, rounded to nearest even
(`quantize` and `scale` of `compiler.contracts.weights`). Activations stay as they are, and a bias
stays in its own Add behind the product. Where the graph computes in float16 or bfloat16, scales are
float32 still and the dequantized weight is cast. The accelerator's operator is an ONNX function
whose body is the standard operators, so that any runtime can take it apart.

`include` and `exclude` are globs over module paths (`model.layers.*.mlp.*`; a star crosses dots).
Included are by default the seven linears of every layer; the head is `lm_head`. A product with a
joined weight (`fuse-qkv`, `fuse-gate-up`) stands for all the modules that it joins: a channel's
scale is the same there. A glob that selects no linear is an error; an embedding is no linear.

It stands after the fusions and `cast-dtype`, and before `store-weights`, which stores what was
quantized as [out, in] int8 whatever its own dtype says. Declines a linear that is quantized
already, that is no MatMul(x, W[in, out]) with a weight of its own, or whose joined weight is
included in part.

Numerically each weight moves by at most half of its channel's scale, which no fixed tolerance on
logits describes. What holds is: the new graph gives, to the bit, what the old one gives with the
rounded weights; `adapt_weights` states those independently of the weight table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import OPSET, Program, tidy
from compiler.contracts.quantization import SEVEN_LINEARS
from compiler.contracts.weights import Weight, quantize, scale, transpose
from passes._match import add_node, module_of, replace_uses, through

Operator = Literal["qdq", "vastai"]

VASTAI_DOMAIN = "Vastai"
QUANTIZED_LINEAR = onnx.parser.parse_function(
    f"""
    <domain: "{VASTAI_DOMAIN}", opset_import: ["" : {OPSET}]>
    QuantizedLinearPerChannel (x, weight, scale) => (y)
    {{
        wide = DequantizeLinear <axis: int = 0> (weight, scale)
        typed = CastLike (wide, x)
        turned = Transpose <perm: ints = [1, 0]> (typed)
        y = MatMul (x, turned)
    }}
    """
)
# What may stand between a parameter and the product that makes it a linear's.
_BETWEEN = ("Cast", "Transpose", "DequantizeLinear")
_FLOATS = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}


@dataclass(frozen=True)
class _Linear:
    """A product with a parameter, and the modules whose weights that parameter holds."""

    node: gs.Node
    parameter: gs.Tensor
    weight: Weight
    modules: tuple[str, ...]

    def problem(self) -> str | None:
        """Why it is not in the canonical form that can be quantized; None when it is."""
        if self.weight.dtype == "int8":
            return "its weight is quantized already"
        if self.node.op != "MatMul" or self.node.inputs[1] is not self.parameter:
            return f"it reads {self.node.inputs[1].name}, expected MatMul(x, W[in, out])"
        if len(self.parameter.outputs) != 1:
            readers = [reader.name for reader in self.parameter.outputs]
            return f"its weight is read by {readers}, expected one node"
        return None if self.weight.dtype in _FLOATS else f"its weight is {self.weight.dtype}"


def _linears(program: Program) -> list[_Linear]:
    found: list[_Linear] = []
    for node in program.graph.nodes:
        if node.op not in ("MatMul", "Gemm", QUANTIZED_LINEAR.name):
            continue
        parameter = through(node.inputs[1], *_BETWEEN)
        weight = program.weights.get(parameter.name)
        if weight is None or len(weight.shape) != 2:
            continue
        sources = tuple(dict.fromkeys(weight.sources()))
        joined = tuple(re.sub(r"\.weight$", "", name) for name in sources)
        found.append(
            _Linear(node, parameter, weight, joined if len(joined) > 1 else (module_of(node),))
        )
    return found


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _check(pattern: str, linears: Sequence[_Linear], graph: gs.Graph, *, option: str) -> None:
    """Refuse a pattern that selects no linear, with what it does select."""
    modules = [module for linear in linears for module in linear.modules]
    if any(fnmatchcase(module, pattern) for module in modules):
        return
    paths = {module_of(node) for node in graph.nodes}
    parents = {path[: dot.start()] for path in paths for dot in re.finditer(r"\.", path)}
    others = sorted(path for path in (paths | parents) - {""} if fnmatchcase(path, pattern))
    raise PassError(
        f"{option}: '{pattern}' matches {f'{others[0]}, no linear' if others else 'no module'}",
        where="annotate-int8-qdq",
        hint=f"the linears here are {', '.join(sorted(modules)[:4])}, ..." if modules else None,
        code="no-such-module",
    )


def _dequantized(program: Program, linear: _Linear, scales: gs.Tensor) -> gs.Tensor:
    """The weight as the product reads it, [in, out] in the dtype that it had."""
    graph, path = program.graph, module_of(linear.node)
    axis: dict[str, object] = {"axis": 1}
    inputs = [linear.parameter, scales]
    wide = add_node(graph, "DequantizeLinear", f"{path}/DequantizeLinear", inputs, attrs=axis)
    if linear.weight.dtype == "float32":
        return wide
    to: dict[str, object] = {"to": int(_FLOATS[linear.weight.dtype])}
    return add_node(graph, "Cast", f"{path}/DequantizeLinear/Cast", [wide], attrs=to)


def _quantize(program: Program, linear: _Linear, operator: Operator) -> None:
    parameter, weight, node = linear.parameter, linear.weight, linear.node
    scales = program.add_parameter(f"{parameter.name}_scale", scale(weight, axis=1))
    stored = quantize(weight, axis=1)
    if operator == "vastai":
        stored = transpose(stored)
    program.weights[parameter.name] = stored
    parameter.shape, parameter.dtype = list(stored.shape), np.dtype(np.int8)
    if operator == "qdq":
        wide = _dequantized(program, linear, scales)
        replace_uses(program.graph, parameter, wide, readers=[node])
        return
    node.op, node.domain = QUANTIZED_LINEAR.name, VASTAI_DOMAIN
    node.inputs.append(scales)
    program.functions[QUANTIZED_LINEAR.name] = QUANTIZED_LINEAR


def annotate_int8_qdq(
    program: Program, include: Sequence[str], exclude: Sequence[str], operator: Operator
) -> PassReport:
    """Quantize every linear that is included and not excluded."""
    linears = _linears(program)
    for option, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            _check(pattern, linears, program.graph, option=option)
    rewrites: list[str] = []
    skips: list[Skip] = []
    for linear in linears:
        chosen = [m for m in linear.modules if _matches(m, include) and not _matches(m, exclude)]
        if not chosen:
            continue
        left_out = [module for module in linear.modules if module not in chosen]
        problem = linear.problem()
        if left_out:
            problem = f"its weight joins {left_out[0]}, which is left out, and {chosen[0]}"
        if problem is not None:
            skips.append(Skip(linear.node.name, problem))
            continue
        _quantize(program, linear, operator)
        rewrites.append(linear.node.name)
    tidy(program.graph)
    return PassReport(tuple(rewrites), tuple(skips))


def rounded(weight: np.ndarray) -> np.ndarray:
    """What int8 leaves of a weight [in, out]: its nearest multiples of each channel's scale."""
    wide = weight.astype(np.float32)
    scales = np.abs(wide).max(axis=0) / np.float32(127)
    scales[scales < np.finfo(np.float32).tiny] = 1
    return (np.rint(wide / scales) * scales).astype(weight.dtype)


@dataclass(frozen=True)
class AnnotateInt8QDQ(Pass):
    """W[in, out] -> DequantizeLinear(int8, scale of each output channel) on chosen linears."""

    name: ClassVar = "annotate-int8-qdq"
    after: ClassVar = (
        "insert-strided-slice",
        "fuse-qkv",
        "fuse-gate-up",
        "pad-vocabulary",
        "cast-dtype",
    )
    contract: ClassVar = Contract.exact()
    include: tuple[str, ...] = SEVEN_LINEARS
    exclude: tuple[str, ...] = ()
    operator: Operator = "qdq"

    def run(self, program: Program) -> PassReport:
        """Quantize the included linears; decline those of another form, with the reason."""
        return annotate_int8_qdq(program, self.include, self.exclude, self.operator)

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        """The weights that became int8 are rounded to it; the rest are as they were."""
        new = {name for name, weight in program.weights.items() if weight.dtype == "int8"}
        return {
            name: rounded(value) if name in new and value.dtype != np.int8 else value
            for name, value in old.items()
        }
