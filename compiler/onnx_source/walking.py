"""Walks over a graph along the values it computes, lengths and shapes left aside."""

from collections.abc import Callable, Iterable

import onnx_graphsurgeon as gs

# Their first input alone is a value; the others say where and how much.
_FIRST_ONLY = (
    "Expand",
    "ReduceMean",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Unsqueeze",
)
# What they give is a length or a position, no value of the model's.
_NO_VALUE = ("Range", "Shape", "Size", "ConstantOfShape")
Stop = Callable[[gs.Node], bool]


def value_inputs(node: gs.Node) -> list[gs.Tensor]:
    """The inputs whose values `node` computes with."""
    if node.op in _NO_VALUE:
        return []
    return list(node.inputs[:1] if node.op in _FIRST_ONLY else node.inputs)


def first_above(tensor: gs.Tensor, is_stop: Stop) -> list[gs.Node]:
    """The nearest nodes above `tensor` for which `is_stop` holds, on every way up."""
    return _first(tensor.inputs, is_stop, lambda node: _producers(value_inputs(node)))


def first_below(tensor: gs.Tensor, is_stop: Stop) -> list[gs.Node]:
    """The nearest nodes below `tensor` for which `is_stop` holds, on every way down."""
    return _first(_value_readers(tensor), is_stop, _readers)


def above(*nodes: gs.Node) -> list[gs.Node]:
    """Every node whose values the given ones depend on."""
    found: dict[int, gs.Node] = {}
    stack = [one for node in nodes for one in _producers(value_inputs(node))]
    while stack:
        node = stack.pop()
        if id(node) not in found:
            found[id(node)] = node
            stack += _producers(value_inputs(node))
    return list(found.values())


def _producers(tensors: Iterable[gs.Tensor]) -> list[gs.Node]:
    return [node for tensor in tensors for node in tensor.inputs]


def _value_readers(tensor: gs.Tensor) -> list[gs.Node]:
    return [n for n in tensor.outputs if any(tensor is given for given in value_inputs(n))]


def _readers(node: gs.Node) -> list[gs.Node]:
    return [reader for tensor in node.outputs for reader in _value_readers(tensor)]


def _first(
    start: Iterable[gs.Node],
    is_stop: Stop,
    onward: Callable[[gs.Node], list[gs.Node]],
) -> list[gs.Node]:
    found: list[gs.Node] = []
    seen: set[int] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if is_stop(node):
            found.append(node)
        else:
            stack.extend(onward(node))
    return found
