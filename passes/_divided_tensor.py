"""A tensor of which each rank has a share, what becomes of it in a Reshape, and all of a graph.

[1, T, H * d]  ->  [1, T, H, d]        the flat axis divides by heads
[1, H, T, d]   ->  [1, K, G, T, d]     K heads divide, or G, the queries of each
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod

import onnx_graphsurgeon as gs

from compiler.contracts.program import Program
from compiler.contracts.tensor_parallel import kv_repeats
from passes._match import Shape, constant, produced_by


@dataclass(frozen=True)
class Part:
    """A stretch of a flat axis, and what of it one rank keeps.

    Attributes:
        full: Its length in the whole.
        unit: What divides: the width of a head, or 1.
        kept: Stretches [start, stop) of the whole axis.
    """

    full: int
    unit: int
    kept: tuple[tuple[int, int], ...]

    @property
    def local(self) -> int:
        """Its length on the rank."""
        return sum(stop - start for start, stop in self.kept)


@dataclass(frozen=True)
class Divided:
    """A tensor of which a rank has a share.

    Attributes:
        axes: Those that are divided.
        full: Its shape in the whole.
        local: Its shape on the rank.
        parts: What a flat last axis is made of; empty elsewhere.
    """

    axes: frozenset[int]
    full: tuple[int, ...]
    local: tuple[int, ...]
    parts: tuple[Part, ...] = ()


def resolved(entries: Sequence[int], given: Sequence[int]) -> tuple[int, ...]:
    """The shape that a Reshape's entries mean: 0 copies an axis, -1 is what is left."""
    sizes = [given[axis] if entry == 0 else entry for axis, entry in enumerate(entries)]
    rest = prod(given) // prod(size for size in sizes if size != -1)
    return tuple(rest if size == -1 else size for size in sizes)


def reshaped(one: Divided, full: tuple[int, ...], ways: int) -> Divided | str:
    last = len(one.full) - 1
    if one.axes == {last} and len(one.parts) == 1 and one.parts[0].unit > 1:
        part = one.parts[0]
        heads = (part.full // part.unit, part.unit)
        if full[-2:] != heads:
            return f"it makes {list(full)} of {part.full // part.unit} heads of {part.unit}"
        local = (*full[:-2], part.local // part.unit, part.unit)
        return Divided(frozenset((len(full) - 2,)), full, local)
    if len(one.parts) > 1:
        return "it reshapes what several products made"
    local, axes = list(full), set[int]()
    for ones, others in _groups(one.full, full):
        if not one.axes & set(ones):
            continue
        sizes = _divided_sizes([full[a] for a in others], prod(one.local[a] for a in ones), ways)
        leading = [axis for axis in ones if one.full[axis] != 1 or axis in one.axes]
        if prod(sizes or ()) == prod(full[a] for a in others) == 1 and (axes or not others):
            continue
        if sizes is None or leading[0] not in one.axes:
            return f"it makes {list(full)} of {list(one.full)} divided to {list(one.local)}"
        for axis, size in zip(others, sizes, strict=True):
            local[axis] = size
        axes |= {a for a, size in zip(others, sizes, strict=True) if size != full[a]}
        axes.add(others[0])
    return Divided(frozenset(axes), full, tuple(local))


def _groups(ones: Sequence[int], others: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Axes of two shapes of equal size that hold the same entries, from the right."""
    i, j = len(ones), len(others)
    while i > 0 or j > 0:
        last, other_last = i, j
        i, j = max(i - 1, 0), max(j - 1, 0)
        left, right = prod(ones[i:last]), prod(others[j:other_last])
        while left != right:
            if left < right:
                i -= 1
                left *= ones[i]
            else:
                j -= 1
                right *= others[j]
        yield range(i, last), range(j, other_last)


def _divided_sizes(full: Sequence[int], local: int, ways: int) -> list[int] | None:
    """Sizes on a rank whose product is `local`: heads divide, and then the queries of a head."""
    if len(full) == 1:
        return [local]
    repeats = kv_repeats(full[0], ways)
    first = full[0] * repeats // ways
    sizes = [first, *full[1:]]
    if prod(sizes) != local and full[1] % repeats == 0:
        sizes[1] = full[1] // repeats
    return sizes if prod(sizes) == local else None


@dataclass
class Division:
    """What divides in one graph, and what must change for it.

    Attributes:
        program: The whole.
        ways: Number of ranks.
        sums: Nodes (by id) that sum over a divided last axis.
        found: Divided tensors, by id.
        constants: (node, input) -> the integers that stand there on a rank.
        attributes: (node, attribute) -> its value on a rank.
        vectors: Parameter -> the parts of it that a rank keeps.
    """

    program: Program
    ways: int
    sums: Set[int]
    found: dict[int, Divided]
    constants: list[tuple[gs.Node, int, list[int]]] = field(default_factory=list)
    attributes: list[tuple[gs.Node, str, list[int]]] = field(default_factory=list)
    vectors: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The whole shape of a tensor; None where it is not known."""
        if produced_by(tensor, "CausalMask") is not None:  # which ONNX does not infer
            return self.program.tokens, self.program.context
        known = constant(tensor)
        axes = self.shapes.get(tensor.name) if known is None else known.shape
        if axes is None or any(axis is None for axis in axes):
            return None
        return tuple(axis for axis in axes if axis is not None)
