"""Whether a pass did the same to the probe as to the model: equal graphs but for dimensions."""

from collections.abc import Iterable
from itertools import zip_longest

import numpy as np
import onnx_graphsurgeon as gs

from compiler.contracts.program import Program
from compiler.contracts.weights import Weight

# Attributes that hold no length; every other number of an attribute may be a dimension.
_STRUCTURAL = frozenset(
    (
        "allowzero",
        "axes",
        "axis",
        "batch_dims",
        "direction",
        "epsilon",
        "keepdims",
        "mode",
        "perm",
        "to",
        "transA",
        "transB",
    )
)
# Operators whose second input, a constant, names axes.
_TAKES_AXES = frozenset(("ReduceMean", "ReduceSum", "ReduceMax", "Squeeze", "Unsqueeze"))


def difference(real: Program, probe: Program) -> str | None:
    """The first place where two programs differ in more than dimensions; None when they do not."""
    return (
        _interface_difference(real, probe)
        or _node_difference(real.graph.nodes, probe.graph.nodes)
        or _weight_difference(real, probe)
    )


def _interface_difference(real: Program, probe: Program) -> str | None:
    for side, ones, others in (
        ("input", real.inputs(), probe.inputs()),
        ("output", real.outputs(), probe.outputs()),
    ):
        for one, other in zip_longest(ones, others):
            if one is None or other is None:
                return f"only one of them has the {side} {getattr(one or other, 'name', '')}"
            if (one.name, one.dtype, len(one.shape)) != (other.name, other.dtype, len(other.shape)):
                return f"the {side} {one} is {other} in the probe"
    if real.aliases != probe.aliases or real.logits_of != probe.logits_of:
        return "their aliases or `logits_of` differ"
    functions = (sorted(real.functions), sorted(probe.functions))
    return None if functions[0] == functions[1] else f"they hold the functions {functions}"


def _node_difference(ones: Iterable[gs.Node], others: Iterable[gs.Node]) -> str | None:
    for one, other in zip_longest(ones, others):
        if one is None or other is None:
            return f"only one of them has the node {getattr(one or other, 'name', '')}"
        if (one.name, one.op, one.domain) != (other.name, other.op, other.domain):
            return f"{one.name} ({one.op}) is {other.name} ({other.op}) in the probe"
        if [_edge(t) for t in one.inputs] != [_edge(t) for t in other.inputs]:
            return f"{one.name} reads other tensors in the probe"
        if [t.name for t in one.outputs] != [t.name for t in other.outputs]:
            return f"{one.name} makes other tensors in the probe"
        if one.op in _TAKES_AXES and _axes(one) != _axes(other):
            return f"{one.name} works on other axes in the probe"
        if _attributes(one) != _attributes(other):
            return f"{one.name} has other attributes in the probe"
    return None


def _edge(tensor: gs.Tensor) -> tuple[str, str, int]:
    """A variable by its name; a constant by dtype and rank, too."""
    if not isinstance(tensor, gs.Constant):
        return tensor.name, "", 0
    return tensor.name, str(tensor.dtype), len(tensor.shape)


def _axes(node: gs.Node) -> list[int]:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return np.asarray(axes.values).ravel().tolist() if isinstance(axes, gs.Constant) else []


def _attributes(node: gs.Node) -> dict[str, object]:
    return {
        name: value if name in _STRUCTURAL or isinstance(value, str) else _form(value)
        for name, value in node.attrs.items()
    }


def _form(value: object) -> tuple[str, int]:
    return type(value).__name__, len(value) if isinstance(value, list) else 0


def _weight_difference(real: Program, probe: Program) -> str | None:
    if list(real.weights) != list(probe.weights):
        name = next(iter(set(real.weights) ^ set(probe.weights)), "(their order)")
        return f"only one of them has the parameter {name}"
    for name, weight in real.weights.items():
        if _expression(weight) != _expression(probe.weights[name]):
            return f"the parameter {name} is made in another way in the probe"
    return None


def _expression(weight: Weight) -> tuple[object, ...]:
    """The expression without its lengths."""
    names = weight.attributes if weight.op == "source" else ()
    operands = tuple(_expression(operand) for operand in weight.operands)
    return weight.op, weight.dtype, len(weight.shape), names, operands
