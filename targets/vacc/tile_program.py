"""A tile program: what one partition does on the device, as data; docs/vacc-tiles.md is its text.

A kernel works on tiles: it loads parts of its arguments into buffers on chip, computes on buffers,
and stores. The program runs kernels on tensors in the device's memory. `tile_text` reads and writes
the text; the emulator and the cost model walk the same data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

ITEM_BYTES: Mapping[str, int] = {"f16": 2, "f32": 4, "i8": 1, "i64": 8}
# Given anew with each call; the same in all calls; kept between calls and written in place.
Role = Literal["arg", "weight", "state"]
ROLES: tuple[Role, ...] = ("arg", "weight", "state")
# What ranks do together.
Collective = Literal["all_reduce", "all_gather"]
COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "all_gather")


@dataclass(frozen=True)
class Sum:
    """`8*h+m+16`: a constant and multiples of loop variables and scalars."""

    constant: int = 0
    terms: tuple[tuple[int, str], ...] = ()

    def value(self, names: Mapping[str, int]) -> int:
        """Its value where the names have these."""
        return self.constant + sum(factor * names[name] for factor, name in self.terms)

    def __str__(self) -> str:
        parts = [name if factor == 1 else f"{factor}*{name}" for factor, name in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return "+".join(parts)


@dataclass(frozen=True)
class Span:
    """`start:+count` of an axis."""

    start: Sum
    count: Sum

    def __str__(self) -> str:
        return f"{self.start}:+{self.count}"


@dataclass(frozen=True)
class Tensor:
    """`f16[128,576] name`: in memory, or a buffer on chip, whose shape is then its capacity."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def type_text(self) -> str:
        """`f16[128,576]`."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Scalar:
    """`scalar past = past_length`: the first entry of an integer argument, for bounds."""

    name: str
    source: str


@dataclass(frozen=True)
class Load:
    """`load xs = x[m:+m.n, 0:+576]`: a part of an argument into a buffer.

    With `rows`, `load xs = table[0:+128, 0:+64] rows ids`: those that a buffer of indices names.
    """

    buffer: str
    source: str
    region: tuple[Span, ...]
    rows: str = ""


@dataclass(frozen=True)
class Store:
    """`store y[m:+m.n, 0:+576] = acc`: a buffer into a part of a result, rounded to its dtype."""

    target: str
    region: tuple[Span, ...]
    buffer: str


@dataclass(frozen=True)
class Compute:
    """`dot acc = xs, ws`: a tile body on buffers; its attributes are numbers or bounds."""

    op: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    attributes: tuple[tuple[str, "Sum | float"], ...] = ()


@dataclass(frozen=True)
class Loop:
    """`for m in 0:T step 128`: `m.n` is how many are left, at most the step."""

    variable: str
    start: Sum
    stop: Sum
    step: int
    body: tuple["Statement", ...]


Statement: TypeAlias = Scalar | Load | Store | Compute | Loop


@dataclass(frozen=True)
class Kernel:
    """What is done on the chip for one composite of given shapes.

    Attributes:
        name: In its program.
        composite: What it computes: `linear`.
        inputs: In memory, read.
        outputs: In memory, written.
        buffers: On chip.
        body: Statements, in order.
    """

    name: str
    composite: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]
    body: tuple[Statement, ...]

    @property
    def onchip_bytes(self) -> int:
        """Bytes of all its buffers."""
        return sum(buffer.nbytes for buffer in self.buffers)


@dataclass(frozen=True)
class Run:
    """`run linear_1 model.layers.0.mlp.up_proj (x, w) -> t4`: a kernel on tensors in memory.

    Attributes:
        kernel: Its name.
        module: Whose work it is, a module's path: names are provenance.
        arguments: Names of tensors, as the kernel's inputs.
        results: As its outputs; a tensor that exists is written in place.
    """

    kernel: str
    module: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True)
class Meet:
    """`all_reduce model.layers.0.mlp.down_proj ways=4 (t3) -> (t4)`: ranks with a tensor each.

    Attributes:
        collective: Their sum, or all of them joined along the last axis.
        module: Whose result it completes.
        ways: Number of ranks.
        argument: This rank's.
        result: The same on each rank.
    """

    collective: Collective
    module: str
    ways: int
    argument: str
    result: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """As of a run."""
        return (self.argument,)

    @property
    def results(self) -> tuple[str, ...]:
        """As of a run."""
        return (self.result,)


@dataclass(frozen=True)
class View:
    """`view f16[128,9,64] v5 = t4`: the same bytes in another shape."""

    tensor: Tensor
    source: str

    @property
    def name(self) -> str:
        """What later steps call it."""
        return self.tensor.name


Step: TypeAlias = Run | Meet | View


@dataclass(frozen=True)
class Argument:
    """`weight f16[576,576] model.layers.0.mlp.up_proj.weight`: what the host gives."""

    role: Role
    tensor: Tensor


@dataclass(frozen=True)
class TileProgram:
    """One partition.

    Attributes:
        name: The packed function that the host calls.
        onchip_bytes: What the buffers of a kernel may take together.
        kernels: Each once, whatever runs use it.
        arguments: In the order of the call.
        tensors: What else lies in memory: results and temporaries.
        steps: Runs, views and meetings, in order.
        results: What the host gets, in order; an argument among them was written in place.
    """

    name: str
    onchip_bytes: int
    kernels: tuple[Kernel, ...]
    arguments: tuple[Argument, ...]
    tensors: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    results: tuple[str, ...]

    @property
    def kernel_of(self) -> Mapping[str, Kernel]:
        """The kernels by name."""
        return {kernel.name: kernel for kernel in self.kernels}

    @property
    def memory(self) -> Mapping[str, Tensor]:
        """What lies in memory by name; views are not among it."""
        given = (argument.tensor for argument in self.arguments)
        return {tensor.name: tensor for tensor in (*given, *self.tensors)}

    @property
    def workspace_bytes(self) -> int:
        """What lies in memory besides the arguments."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs alone."""
        return tuple(step for step in self.steps if isinstance(step, Run))

    @property
    def meets(self) -> tuple[Meet, ...]:
        """Where it waits for the other ranks, in order."""
        return tuple(step for step in self.steps if isinstance(step, Meet))


def walk(
    kernel: Kernel, scalars: Mapping[str, int]
) -> Iterator[tuple[Load | Store | Compute, Mapping[str, int]]]:
    """Every load, store and compute in the order of execution, and the values of names there.

    Args:
        kernel: To walk.
        scalars: Argument -> its first entry, for those that `scalar` statements read.
    """
    yield from _walk(kernel.body, {}, scalars)


def _walk(
    body: tuple[Statement, ...], names: dict[str, int], scalars: Mapping[str, int]
) -> Iterator[tuple[Load | Store | Compute, Mapping[str, int]]]:
    for statement in body:
        match statement:
            case Scalar(name, source):
                names[name] = scalars[source]
            case Loop():
                stop = statement.stop.value(names)
                for index in range(statement.start.value(names), stop, statement.step):
                    names[statement.variable] = index
                    names[f"{statement.variable}.n"] = min(statement.step, stop - index)
                    yield from _walk(statement.body, names, scalars)
            case _:
                yield statement, names
