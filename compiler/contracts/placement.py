"""Where a checkpoint tensor lies in the value of an expression, along one axis of it.

    concat([q.bias[0:8], k.bias[0:4]])         axis 0:  q.bias 0:8 at 0, k.bias 0:4 at 8
    transpose(slice(q.weight[8, 6], 0, 2, 6))  axis 1:  q.weight 2:6 at 0

An invariant compares two of them, a bias's and its weight's, without a value being read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from compiler.contracts.weights import Weight


@dataclass(frozen=True, order=True)
class Placement:
    """`count` entries of `source`, those from `first` on, lie in a value from `start` on."""

    source: str
    start: int
    first: int
    count: int

    def __str__(self) -> str:
        return f"{self.first}:{self.first + self.count} at {self.start}"


def placements(weight: Weight, axis: int) -> tuple[Placement, ...]:
    """Every stretch of every checkpoint tensor along `axis` of `weight`, sorted, neighbours joined.

    An operator that keeps its operand's shape (a cast, a quantization) keeps its places; what any
    other operator makes has none.
    """
    return _joined(sorted(set(_placements(weight, axis))))


def _placements(weight: Weight, axis: int) -> list[Placement]:
    match weight.op:
        case "source":
            return [Placement(str(weight.attributes[0]), 0, 0, weight.shape[axis])]
        case "transpose":
            return _placements(weight.operands[0], 1 - axis)
        case "concat":
            return _of_concat(weight, axis)
        case "slice":
            along, low, high = (int(attribute) for attribute in weight.attributes)
            places = _placements(weight.operands[0], axis)
            return _within(places, low, high) if along == axis else places
        case "scale" if axis == 0:  # one, or one row of them, for each row
            return _placements(weight.operands[0], 0)
        case _:
            is_elementwise = weight.operands and weight.operands[0].shape == weight.shape
            return _placements(weight.operands[0], axis) if is_elementwise else []


def _of_concat(weight: Weight, axis: int) -> list[Placement]:
    """Parts lie one after the other on the first axis, and side by side on any other."""
    found: list[Placement] = []
    base = 0
    for part in weight.operands:
        shift = base if axis == 0 else 0
        found += [replace(one, start=one.start + shift) for one in _placements(part, axis)]
        base += part.shape[0]
    return found


def _within(places: Iterable[Placement], low: int, high: int) -> list[Placement]:
    """What is left of them in `[low, high)`, counted from `low`."""
    found: list[Placement] = []
    for one in places:
        start, stop = max(one.start, low), min(one.start + one.count, high)
        if start < stop:
            first = one.first + start - one.start
            found.append(Placement(one.source, start - low, first, stop - start))
    return found


def _joined(ordered: Iterable[Placement]) -> tuple[Placement, ...]:
    found: list[Placement] = []
    for one in ordered:
        last = found[-1] if found else None
        if last is not None and (one.source, one.start, one.first) == (
            last.source,
            last.start + last.count,
            last.first + last.count,
        ):
            found[-1] = replace(last, count=last.count + one.count)
            continue
        found.append(one)
    return tuple(found)
