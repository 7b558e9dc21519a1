"""One node for the root-mean-square norm over the last axis.

    Mul(weight, Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2)), epsilon)))))
 -> FusedRMSNorm(x, weight)

`x * x` is taken for Pow, Div(1, Sqrt) for Reciprocal, and every product in either order. Declines,
with the reason, a ReduceMean of squares that goes on in another way. The ONNX function holds the
same operators in the same order.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Program, tidy
from passes._match import add_node, constant, module_of, only_reader, operands, produced_by

FUSED_RMS_NORM = onnx.parser.parse_function(
    f"""
    <domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}]>
    FusedRMSNorm <epsilon> (x, weight) => (normed)
    {{
        two = Constant <value_float: float = 2.0> ()
        last_axis = Constant <value_ints: ints = [-1]> ()
        small = Constant <value_float: float = @epsilon> ()
        squares = Pow (x, two)
        mean = ReduceMean <keepdims: int = 1> (squares, last_axis)
        shifted = Add (mean, small)
        root = Sqrt (shifted)
        inverse = Reciprocal (root)
        scaled = Mul (x, inverse)
        normed = Mul (weight, scaled)
    }}
    """
)


@dataclass(frozen=True)
class _Norm:
    """One matched norm."""

    x: gs.Tensor
    weight: gs.Tensor
    epsilon: float
    last: gs.Node


def _squared(mean: gs.Node) -> gs.Tensor | None:
    """The x of ReduceMean(x ** 2) over the last axis, kept."""
    axes = constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    if axes is None or axes.tolist() != [-1] or mean.attrs.get("keepdims", 1) != 1:
        return None
    power = produced_by(mean.inputs[0], "Pow")
    if power is not None:
        exponent = constant(power.inputs[1])
        is_square = exponent is not None and exponent.size == 1 and exponent.item() == 2.0
        return power.inputs[0] if is_square else None
    product = produced_by(mean.inputs[0], "Mul")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _inverse(root: gs.Node) -> gs.Node | None:
    """The node that makes 1 / root."""
    reciprocal = only_reader(root.outputs[0], "Reciprocal")
    if reciprocal is not None:
        return reciprocal
    quotient = only_reader(root.outputs[0], "Div")
    one = constant(quotient.inputs[0]) if quotient is not None else None
    return quotient if one is not None and one.size == 1 and one.item() == 1.0 else None


def _other(node: gs.Node, tensor: gs.Tensor) -> gs.Tensor | None:
    """The operand of a two-input node that is not `tensor`."""
    return next((other for one, other in operands(node) if one is tensor), None)


def _match(mean: gs.Node, x: gs.Tensor) -> _Norm | str:
    shifted = only_reader(mean.outputs[0], "Add")
    addend = _other(shifted, mean.outputs[0]) if shifted is not None else None
    epsilon = constant(addend) if addend is not None else None
    if shifted is None or epsilon is None or epsilon.size != 1:
        return "no constant epsilon is added to its mean"
    if epsilon.dtype != np.float32:
        return f"epsilon is {epsilon.dtype}, expected float32"
    root = only_reader(shifted.outputs[0], "Sqrt")
    inverse = _inverse(root) if root is not None else None
    if inverse is None:
        return f"{shifted.name} does not go through Sqrt and its inverse"
    scaled = only_reader(inverse.outputs[0], "Mul")
    if scaled is None or _other(scaled, inverse.outputs[0]) is not x:
        return f"{inverse.name} does not scale the tensor that was squared"
    weighted = only_reader(scaled.outputs[0], "Mul")
    weight = _other(weighted, scaled.outputs[0]) if weighted is not None else None
    if weighted is None or weight is None or weight.shape is None or len(weight.shape) != 1:
        return f"{scaled.name} is not multiplied by a weight of one axis"
    return _Norm(x, weight, float(epsilon.item()), weighted)


def fuse_rms_norm(program: Program) -> PassReport:
    """Fuse every mean of squares that is an RMS norm's."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    for mean in [node for node in graph.nodes if node.op == "ReduceMean"]:
        x = _squared(mean)
        if x is None:
            continue
        match = _match(mean, x)
        if isinstance(match, str):
            skips.append(Skip(mean.name, match))
            continue
        name = f"{module_of(mean)}/FusedRMSNorm"
        output = match.last.outputs[0]
        match.last.outputs.clear()
        attrs: dict[str, object] = {"epsilon": match.epsilon}
        inputs = [match.x, match.weight]
        add_node(graph, "FusedRMSNorm", name, inputs, attrs=attrs, is_fused=True, output=output)
        rewrites.append(name)
    if rewrites:
        program.functions[FUSED_RMS_NORM.name] = FUSED_RMS_NORM
    tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class FuseRMSNorm(Pass):
    """The seven operators of an RMS norm become one FusedRMSNorm."""

    name: ClassVar = "fuse-rms-norm"
    after: ClassVar = ("fold-constants",)
    contract: ClassVar = Contract.close(rtol=1e-5, atol=1e-6)

    def run(self, program: Program) -> PassReport:
        """Fuse each norm; decline what looks like one and differs."""
        return fuse_rms_norm(program)
