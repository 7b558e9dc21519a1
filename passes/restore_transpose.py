"""A Transpose that an exporter wrote with two Reshapes around it becomes one Transpose.

    Reshape(x[1, 4, S, 16], [-1, S, 16]) -> Transpose 0 2 1 -> Reshape [1, 4, 16, S]
 -> Transpose(x, 0 1 3 2)

The shapes may be computed: their entries are followed through Shape, Slice and Concat. Declines,
naming the node, a Transpose between Reshapes that do not exchange the last two axes alone. Exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from passes._match import Shape, constant, known_shapes, only_reader, produced_by

# A length: a number, or (tensor, axis) for one that is not known.
_Length = int | tuple[int, int]


def _lengths(tensor: gs.Tensor, shapes: Mapping[str, Shape]) -> list[_Length] | None:
    """The axes of a tensor whose rank is known."""
    shape = shapes.get(tensor.name)
    if shape is None:
        return None
    return [(id(tensor), at) if axis is None else axis for at, axis in enumerate(shape)]


def _entries(tensor: gs.Tensor, shapes: Mapping[str, Shape]) -> list[_Length] | None:
    """The entries of a vector of lengths; None where they cannot be followed."""
    value = constant(tensor)
    if value is not None:
        return [int(entry) for entry in value.ravel()] if value.ndim == 1 else None
    node = produced_by(tensor, "Shape", "Slice", "Concat")
    if node is None:
        return None
    if node.op == "Shape":
        lengths = _lengths(node.inputs[0], shapes)
        end = node.attrs.get("end")
        return lengths and lengths[node.attrs.get("start", 0) : end]
    if node.op == "Concat":
        parts = [_entries(part, shapes) for part in node.inputs]
        return None if None in parts else [entry for part in parts for entry in part or ()]
    bounds = [constant(bound) for bound in node.inputs[1:]]
    whole = _entries(node.inputs[0], shapes)
    if whole is None or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, *rest = (int(bound.item()) for bound in bounds if bound is not None)
    # Axis 0 of a vector, step 1.
    return whole[start:end] if rest in ([], [0], [0, 1]) else None


@dataclass(frozen=True)
class _Turn:
    """x -> first -> transpose -> last."""

    x: gs.Tensor
    transpose: gs.Node
    last: gs.Node
    rank: int


def _match(transpose: gs.Node, shapes: Mapping[str, Shape]) -> _Turn | str | None:
    first = produced_by(transpose.inputs[0], "Reshape")
    last = only_reader(transpose.outputs[0], "Reshape")
    if first is None or last is None or transpose.attrs.get("perm") != [0, 2, 1]:
        return None
    x = first.inputs[0]
    lengths = _lengths(x, shapes)
    if lengths is None:
        return f"the rank of {x.name} is not known"
    into, out = _entries(first.inputs[1], shapes), _entries(last.inputs[1], shapes)
    if into is None or len(into) != 3 or into[0] != -1 or into[1:] != lengths[-2:]:
        return f"{first.name} does not keep the last two axes of {x.name}"
    if out != [*lengths[:-2], lengths[-1], lengths[-2]]:
        return f"{last.name} does not exchange the last two axes of {x.name}"
    return _Turn(x, transpose, last, len(lengths))


def restore_transpose(program: Program) -> PassReport:
    """Restore every Transpose of the last two axes."""
    graph = program.graph
    rewrites: list[str] = []
    skips: list[Skip] = []
    nodes = [node for node in graph.nodes if node.op == "Transpose"]
    inner = [node for node in nodes if produced_by(node.inputs[0], "Reshape") is not None]
    shapes = known_shapes(program) if any(n.attrs.get("perm") == [0, 2, 1] for n in inner) else {}
    for node in inner:
        match = _match(node, shapes)
        if match is None:
            continue
        if isinstance(match, str):
            skips.append(Skip(node.name, match))
            continue
        output = match.last.outputs[0]
        match.last.outputs.clear()
        leading = list(range(match.rank - 2))
        node.attrs = {"perm": [*leading, match.rank - 1, match.rank - 2]}
        node.inputs, node.outputs = [match.x], [output]
        rewrites.append(node.name)
    if rewrites:
        tidy(graph)
    return PassReport(tuple(rewrites), tuple(skips))


@dataclass(frozen=True)
class RestoreTranspose(Pass):
    """Reshape, Transpose, Reshape that exchange the last two axes become one Transpose."""

    name: ClassVar = "restore-transpose"
    after: ClassVar = ("fold-shapes", "fold-constants")
    contract: ClassVar = Contract.exact()

    def run(self, program: Program) -> PassReport:
        """Restore each; decline what moves other axes."""
        return restore_transpose(program)
