"""Which axis of each tensor counts tokens, carried through a graph operator by operator.

    input_ids[1, T] -> Gather [1, T, H] -> MatMul, Add [1, T, h * d] -> Reshape [1, T, h, d]
    -> Transpose [1, h, T, d]

Nothing is changed here: what must change for more rows is collected. An operator that is not known
to treat rows independently ends it, with its name.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod

import onnx_graphsurgeon as gs

from compiler.contracts.pass_base import Skip
from compiler.contracts.program import Program
from passes._match import Shape, constant, known_shapes

# Output rows depend on the input rows at the same place alone.
_BY_ROW = ("Add", "Cast", "Cos", "Div", "FusedRMSNorm", "FusedRotary", "FusedSiluMul", "Identity")
_BY_ROW += ("Mul", "Neg", "Pow", "QuantizedTokens", "Reciprocal", "Sigmoid", "Sin", "Sqrt", "Sub")
# They work along the axes that an attribute or a constant names.
_ALONG_AXES = ("Concat", "ReduceMax", "ReduceMean", "ReduceSum", "Slice", "Softmax", "Split")


@dataclass
class Rows:
    """Where rows lie in one graph of a single row.

    Attributes:
        program: The graph.
        axes: Axis that counts tokens, by the tensor's id; filled by `follow`.
        ended: Nodes (by id) that are not followed.
        wanted: Axis that they ask for, by the tensor's id: of two that hold one entry, a Reshape
            alone could be either.
        shapes: By tensor name.
        reshapes: (Reshape, its shape, the axis of it that counts tokens).
    """

    program: Program
    axes: dict[int, int]
    ended: Set[int]
    wanted: Mapping[int, int]
    shapes: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    reshapes: list[tuple[gs.Node, tuple[int, ...], int]] = field(
        default_factory=list[tuple[gs.Node, tuple[int, ...], int]]
    )

    def axis(self, tensor: gs.Tensor) -> int | None:
        """None for what holds no rows."""
        return self.axes.get(id(tensor))

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor; None where it is not known."""
        known = constant(tensor)
        axes = self.shapes.get(tensor.name) if known is None else known.shape
        if axes is None or any(axis is None for axis in axes):
            return None
        return tuple(axis for axis in axes if axis is not None)


def follow(rows: Rows) -> Skip | None:
    """Carry the axes through the graph; what stands in the way, if anything does."""
    rows.shapes = known_shapes(rows.program)
    for node in rows.program.graph.nodes:
        if id(node) in rows.ended or all(rows.axis(tensor) is None for tensor in node.inputs):
            continue
        rule = _RULES.get(node.op)
        axis = f"{node.op} is not known to work row by row" if rule is None else rule(node, rows)
        if isinstance(axis, str):
            return Skip(node.name, axis)
        for tensor in node.outputs:
            shape = rows.shape(tensor)
            if shape is not None and shape[axis] != 1:
                return Skip(node.name, f"its result {list(shape)} has no row on axis {axis}")
            rows.axes[id(tensor)] = axis
    return None


_Rule = Callable[[gs.Node, Rows], int | str]


def _rank(tensor: gs.Tensor, rows: Rows) -> int | None:
    shape = rows.shape(tensor)
    return None if shape is None else len(shape)


def _by_row(node: gs.Node, rows: Rows) -> int | str:
    """Operands broadcast against each other from the right."""
    ranks = [_rank(tensor, rows) for tensor in node.inputs]
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks):
        return "the shapes of its operands are not known"
    found = {
        axis + max(known) - rank
        for tensor, rank in zip(node.inputs, known, strict=True)
        if (axis := rows.axis(tensor)) is not None
    }
    return found.pop() if len(found) == 1 else "its operands have their rows on other axes"


def _along_axes(node: gs.Node, rows: Rows) -> int | str:
    given = node.inputs if node.op == "Concat" else node.inputs[:1]
    axes = {rows.axis(tensor) for tensor in given}
    axis = axes.pop()
    rank = _rank(node.inputs[0], rows)
    if axes or axis is None or rank is None:
        return "its operands have their rows on other axes"
    along = _axes_along(node, rank)
    return "it works along the rows" if along is None or axis in along else axis


def _axes_along(node: gs.Node, rank: int) -> list[int] | None:
    """The axes that a node works along, from the left; None where they are not known."""
    if node.op in ("Concat", "Softmax", "Split"):
        default = 0 if node.op == "Split" else -1
        return [int(node.attrs.get("axis", default)) % rank]
    index = 3 if node.op == "Slice" else 1
    axes = constant(node.inputs[index]) if len(node.inputs) > index else None
    is_kept = node.op == "Slice" or node.attrs.get("keepdims", 1) == 1
    return [int(axis) % rank for axis in axes.ravel()] if axes is not None and is_kept else None


def _gather(node: gs.Node, rows: Rows) -> int | str:
    axis = rows.axis(node.inputs[1])
    if axis is None or rows.axis(node.inputs[0]) is not None:
        return "it picks among the rows"
    table = _rank(node.inputs[0], rows)
    if table is None:
        return "the shape of its table is not known"
    return int(node.attrs.get("axis", 0)) % table + axis


def _matmul(node: gs.Node, rows: Rows) -> int | str:
    axis, rank = rows.axis(node.inputs[0]), _rank(node.inputs[0], rows)
    other = _rank(node.inputs[1], rows)
    if axis is None or rank is None or rows.axis(node.inputs[1]) is not None:
        return "it multiplies by what differs from row to row"
    if axis != rank - 2 or other != 2:
        return "it does not multiply rows by one matrix"
    return axis


def _transpose(node: gs.Node, rows: Rows) -> int | str:
    axis = rows.axes[id(node.inputs[0])]
    perm = node.attrs.get("perm")
    return "its axes are not named" if perm is None else [int(one) for one in perm].index(axis)


def _unsqueeze(node: gs.Node, rows: Rows) -> int | str:
    added, rank = constant(node.inputs[1]), _rank(node.inputs[0], rows)
    if added is None or rank is None:
        return "its axes are not constant"
    rank += added.size
    new = {int(axis) % rank for axis in added.ravel()}
    return [axis for axis in range(rank) if axis not in new][rows.axes[id(node.inputs[0])]]


def _reshape(node: gs.Node, rows: Rows) -> int | str:
    """Rows stay where they are in memory; a leading axis of 1 may go."""
    old, written = rows.shape(node.inputs[0]), constant(node.inputs[1])
    if old is None or written is None:
        return "its shapes are not known"
    new = _resolved([int(entry) for entry in written.ravel()], old)
    axis = rows.axes[id(node.inputs[0])]
    at = rows.wanted.get(id(node.outputs[0]), axis - 1 if axis and old[1:] == new else axis)
    if at >= len(new) or new[at] != 1 or prod(new[:at]) != prod(old[:axis]):
        return f"it moves the rows of {list(old)} to {list(new)}"
    rows.reshapes.append((node, new, at))
    return at


def _resolved(entries: Sequence[int], old: Sequence[int]) -> tuple[int, ...]:
    """A Reshape's shape without its 0 (as before) and -1 (what is left)."""
    sizes = [old[i] if entry == 0 else entry for i, entry in enumerate(entries)]
    left = prod(old) // max(1, prod(size for size in sizes if size != -1))
    return tuple(left if size == -1 else size for size in sizes)


_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(_BY_ROW, _by_row),
    **dict.fromkeys(_ALONG_AXES, _along_axes),
    "Gather": _gather,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
