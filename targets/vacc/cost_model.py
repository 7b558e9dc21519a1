"""Estimates of a tile program's time, from the same text that is run and the profile's figures.

A run takes as long as the slowest of three: its loads and stores at the memory's bandwidth, its
multiply-adds at the matrix unit's rate, its other operations at the vector unit's. That supposes
that loads run ahead of computes, which the tiles leave room for. Where ranks meet, the link between
two dies is a fourth. No figure here was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from targets.vacc.device import DeviceProfile
from targets.vacc.tile_ops import TILE_OPS, Work
from targets.vacc.tile_program import (
    ITEM_BYTES,
    Compute,
    Kernel,
    Load,
    Meet,
    Store,
    Tensor,
    TileProgram,
    View,
    walk,
)


@dataclass(frozen=True)
class Cost:
    """What kernels move and compute, and what one rank sends to others."""

    runs: int = 0
    loaded_bytes: int = 0
    stored_bytes: int = 0
    multiply_adds: int = 0
    vector_operations: int = 0
    linked_bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.runs + other.runs,
            self.loaded_bytes + other.loaded_bytes,
            self.stored_bytes + other.stored_bytes,
            self.multiply_adds + other.multiply_adds,
            self.vector_operations + other.vector_operations,
            self.linked_bytes + other.linked_bytes,
        )

    @property
    def moved_bytes(self) -> int:
        """Between memory and chip, both ways."""
        return self.loaded_bytes + self.stored_bytes

    @property
    def flops(self) -> int:
        """A multiply-add is two."""
        return Work(self.multiply_adds, self.vector_operations).flops

    def seconds(self, profile: DeviceProfile) -> dict[str, float]:
        """Of the memory, the link and each unit, alone."""
        return {
            "memory": self.moved_bytes / profile.memory_bandwidth,
            "matrix": self.multiply_adds / profile.matrix_rate,
            "vector": self.vector_operations / profile.vector_rate,
            "link": self.linked_bytes / profile.link_bandwidth,
        }


@dataclass
class _Composite:
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0


def call_lengths(phase: str, tokens: int, context: int) -> dict[str, int]:
    """The call that is estimated: a whole window at the start, or the last token of a context."""
    past = 0 if phase == "prefill" else context - 1
    return {"past_length": past, "valid_length": tokens}


def kernel_cost(kernel: Kernel, lengths: Mapping[str, int]) -> Cost:
    """One run: a walk over the statements that the emulator executes, with shapes for arrays."""
    dtypes = {one.name: one.dtype for one in (*kernel.inputs, *kernel.outputs)}
    shapes: dict[str, tuple[int, ...]] = {}
    loaded = stored = 0
    work = Work()
    for statement, names in walk(kernel, lengths):
        match statement:
            case Load(buffer, source, region, rows):
                shape = tuple(span.count.value(names) for span in region)
                shapes[buffer] = (prod(shapes[rows]), *shape[1:]) if rows else shape
                loaded += prod(shapes[buffer]) * ITEM_BYTES[dtypes[source]]
            case Store(target, region, _):
                count = prod(span.count.value(names) for span in region)
                stored += count * ITEM_BYTES[dtypes[target]]
            case Compute(op, outputs, inputs, _):
                given = [shapes[name] for name in inputs]
                shapes.update(zip(outputs, TILE_OPS[op].shapes(given, {}), strict=True))
                done = TILE_OPS[op].work(given)
                work = Work(
                    work.multiply_adds + done.multiply_adds,
                    work.vector_operations + done.vector_operations,
                )
    return Cost(1, loaded, stored, work.multiply_adds, work.vector_operations)


def meet_cost(meet: Meet, given: Tensor) -> Cost:
    """One rank's part of a ring, in which each sends to the next what it lacks.

    A sum goes round twice, a share of the tensor at a time, and each entry is added once by some
    rank for every other rank; to join, each rank's tensor is handed on to all others.
    """
    others, entries = meet.ways - 1, prod(given.shape)
    if meet.collective == "all_gather":
        sent = others * given.nbytes
        return Cost(1, sent, meet.ways * given.nbytes, linked_bytes=sent)
    sent = 2 * given.nbytes * others // meet.ways
    added = entries * others // meet.ways
    return Cost(1, sent, given.nbytes, vector_operations=added, linked_bytes=sent)


def _costs(program: TileProgram, lengths: Mapping[str, int]) -> Iterator[tuple[str, Cost]]:
    """(composite, cost) of each step that is work."""
    kernels = program.kernel_of
    once = {name: kernel_cost(kernel, lengths) for name, kernel in kernels.items()}
    tensors = {**program.memory, **{s.name: s.tensor for s in program.steps if isinstance(s, View)}}
    for step in program.steps:
        match step:
            case Meet():
                yield step.collective, meet_cost(step, tensors[step.argument])
            case View():
                pass
            case _:
                yield kernels[step.kernel].composite, once[step.kernel]


def program_cost(program: TileProgram, lengths: Mapping[str, int]) -> dict[str, Cost]:
    """Composite -> what all its runs cost."""
    found: dict[str, Cost] = {}
    for composite, cost in _costs(program, lengths):
        found[composite] = found.get(composite, Cost()) + cost
    return found


def estimate(
    programs: Sequence[TileProgram], profile: DeviceProfile, lengths: Mapping[str, int]
) -> dict[str, object]:
    """One call of a phase, as JSON: each composite, their sum, and the roofline."""
    found: dict[str, _Composite] = {}
    for program in programs:
        for composite, cost in _costs(program, lengths):
            entry = found.setdefault(composite, _Composite())
            entry.cost += cost
            entry.seconds += max(cost.seconds(profile).values())
    total = _Composite(
        sum((one.cost for one in found.values()), Cost()),
        sum(one.seconds for one in found.values()),
    )
    return {
        "is_estimate": True,
        "note": "computed from the profile's assumed figures; nothing here was measured",
        "call": dict(lengths),
        "roofline": {
            "peak_flops": 2 * profile.matrix_rate,
            "memory_bandwidth": profile.memory_bandwidth,
            "link_bandwidth": profile.link_bandwidth,
            "ridge_flops_per_byte": 2 * profile.matrix_rate / profile.memory_bandwidth,
        },
        "total": _entry(total, profile),
        "composites": {name: _entry(found[name], profile) for name in sorted(found)},
    }


def _entry(one: _Composite, profile: DeviceProfile) -> dict[str, object]:
    parts = one.cost.seconds(profile)
    seconds = one.seconds or 1.0
    return {
        "runs": one.cost.runs,
        "estimated_seconds": one.seconds,
        "bound_by": max(parts, key=lambda part: parts[part]),
        "moved_bytes": one.cost.moved_bytes,
        "multiply_adds": one.cost.multiply_adds,
        "vector_operations": one.cost.vector_operations,
        "linked_bytes": one.cost.linked_bytes,
        "flops_per_byte": one.cost.flops / max(one.cost.moved_bytes, 1),
        "matrix_utilisation": parts["matrix"] / seconds,
        "memory_utilisation": parts["memory"] / seconds,
    }
