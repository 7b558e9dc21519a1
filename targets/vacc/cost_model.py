"""Estimates of a tile program's time, from the same text that is run and the profile's figures.

A run takes as long as the slowest of three: its loads and stores at the memory's bandwidth, its
multiply-adds at the matrix unit's rate, its other operations at the vector unit's. That supposes
that loads run ahead of computes, which the tiles leave room for. No figure here was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from targets.vacc.device import DeviceProfile
from targets.vacc.tile_ops import TILE_OPS, Work
from targets.vacc.tile_program import ITEM_BYTES, Compute, Kernel, Load, Store, TileProgram, walk


@dataclass(frozen=True)
class Cost:
    """What kernels move and compute."""

    runs: int = 0
    loaded_bytes: int = 0
    stored_bytes: int = 0
    multiply_adds: int = 0
    vector_operations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.runs + other.runs,
            self.loaded_bytes + other.loaded_bytes,
            self.stored_bytes + other.stored_bytes,
            self.multiply_adds + other.multiply_adds,
            self.vector_operations + other.vector_operations,
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
        """Of the memory and of each unit, alone."""
        return {
            "memory": self.moved_bytes / profile.memory_bandwidth,
            "matrix": self.multiply_adds / profile.matrix_rate,
            "vector": self.vector_operations / profile.vector_rate,
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


def program_cost(program: TileProgram, lengths: Mapping[str, int]) -> dict[str, Cost]:
    """Composite -> what all its runs cost."""
    kernels = program.kernel_of
    once = {name: kernel_cost(kernel, lengths) for name, kernel in kernels.items()}
    found: dict[str, Cost] = {}
    for run in program.runs:
        composite = kernels[run.kernel].composite
        found[composite] = found.get(composite, Cost()) + once[run.kernel]
    return found


def estimate(
    programs: Sequence[TileProgram], profile: DeviceProfile, lengths: Mapping[str, int]
) -> dict[str, object]:
    """One call of a phase, as JSON: each composite, their sum, and the roofline."""
    found: dict[str, _Composite] = {}
    for program in programs:
        kernels = program.kernel_of
        once = {name: kernel_cost(kernel, lengths) for name, kernel in kernels.items()}
        for run in program.runs:
            entry = found.setdefault(kernels[run.kernel].composite, _Composite())
            entry.cost += once[run.kernel]
            entry.seconds += max(once[run.kernel].seconds(profile).values())
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
        "flops_per_byte": one.cost.flops / max(one.cost.moved_bytes, 1),
        "matrix_utilisation": parts["matrix"] / seconds,
        "memory_utilisation": parts["memory"] / seconds,
    }
