"""Runs tile programs with numpy, to the letter of their text: the driver `emulator`.

Tensors in memory are float16, float32, int8 or int64 arrays; buffers on chip are what statements
read and write, and nothing else is. What a program may not do raises: buffers larger than the chip
holds, reading a buffer that nothing was put in, a region outside its tensor, a dtype that differs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from compiler.contracts.errors import TargetError
from compiler.contracts.tensor_parallel import Collectives
from targets.vacc.buffers import DTYPES, Buffer
from targets.vacc.driver import LoadedPartition, Watch
from targets.vacc.meeting import check_ways, meet_ranks
from targets.vacc.tile_check import check_tiles
from targets.vacc.tile_ops import TILE_OPS
from targets.vacc.tile_program import (
    Compute,
    Load,
    Meet,
    Run,
    Span,
    Store,
    Sum,
    Tensor,
    TileProgram,
    View,
    walk,
)
from targets.vacc.tile_text import parse_tiles

# A value beyond float16 becomes infinite, as the contract says.
_QUIET = {"over": "ignore", "invalid": "ignore", "divide": "ignore", "under": "ignore"}


@dataclass
class _Place:
    """Where a kernel runs: its arguments in memory by the kernel's own names, and its buffers."""

    run: Run
    memory: Mapping[str, np.ndarray]
    buffers: Mapping[str, Buffer]


class EmulatedPartition(LoadedPartition):
    """One partition, ready to run.

    Attributes:
        program: What was parsed of the text.
        runs: How often a kernel was executed, by the module that it was executed for.
    """

    def __init__(self, tiles: str, *, where: str = "tiles") -> None:
        self.program: TileProgram = parse_tiles(tiles, where=where)
        self.runs: dict[str, int] = {}
        self.argument_dtypes = tuple(DTYPES[a.tensor.dtype] for a in self.program.arguments)
        self._kernels = self.program.kernel_of
        check_tiles(self.program, where=where)
        self._buffers = {
            kernel.name: {one.name: Buffer(one) for one in kernel.buffers}
            for kernel in self.program.kernels
        }
        self._own = {t.name: np.zeros(t.shape, DTYPES[t.dtype]) for t in self.program.tensors}
        self._collectives: Collectives | None = None

    def join(self, collectives: Collectives) -> None:
        """Meet the other ranks by these."""
        check_ways(self.program, collectives)
        self._collectives = collectives

    def call(self, arguments: Sequence[np.ndarray], watch: Watch | None = None) -> list[np.ndarray]:
        """Execute every step; states among the arguments change in place.

        Args:
            arguments: In the program's order, each of its dtype and shape.
            watch: Shown what each run leaves.

        Returns:
            The program's results; a state is the array that was given.

        Raises:
            TargetError: An argument is of another type, or the program does what it may not.
        """
        memory = dict(self._own)
        for given, declared in zip(arguments, self.program.arguments, strict=True):
            _check_argument(given, declared.tensor)
            memory[declared.tensor.name] = given
        with np.errstate(**_QUIET):  # type: ignore[arg-type]  # the literals of numpy's stubs
            for step in self.program.steps:
                if isinstance(step, View):
                    memory[step.name] = memory[step.source].reshape(step.tensor.shape)
                    continue
                if isinstance(step, Meet):
                    meet_ranks(step, memory, self._collectives)
                    if watch is not None:
                        _show(step.module, step.collective, [memory[step.result]], watch)
                    continue
                self.execute(step, memory)
                if watch is not None:
                    self._show(step, memory, watch)
        states = {one.tensor.name for one in self.program.arguments if one.role == "state"}
        # The partition's own memory is written again by the next call.
        return [memory[n] if n in states else memory[n].copy() for n in self.program.results]

    def execute(self, run: Run, memory: Mapping[str, np.ndarray]) -> None:
        """One kernel."""
        kernel = self._kernels[run.kernel]
        names = (*run.arguments, *run.results)
        tensors = (*kernel.inputs, *kernel.outputs)
        place = _Place(
            run,
            {
                tensor.name: memory[name].reshape(tensor.shape)
                for tensor, name in zip(tensors, names, strict=True)
            },
            self._buffers[kernel.name],
        )
        for buffer in place.buffers.values():
            buffer.empty()
        scalars = {
            name: int(values.flat[0])
            for name, values in place.memory.items()
            if values.dtype == np.int64 and values.size == 1
        }
        try:
            for statement, values in walk(kernel, scalars):
                self._do(statement, values, place)
        except TargetError as e:
            where = f"{self.program.name}: {kernel.name} for {run.module}"
            raise TargetError(e.message, where=e.where or where) from e
        self.runs[run.module] = self.runs.get(run.module, 0) + 1

    def stored(self, run: Run, values: np.ndarray) -> np.ndarray:
        """What a store writes; a fault is put in here."""
        del run
        return values

    def loaded(self, run: Run, name: str, values: np.ndarray) -> np.ndarray:
        """What a load of the kernel's argument `name` reads; a fault is put in here."""
        del run, name
        return values

    def _do(
        self, statement: Load | Store | Compute, values: Mapping[str, int], place: _Place
    ) -> None:
        match statement:
            case Load(buffer, source, region, rows):
                part = _part(place.memory[source], region, values, source)
                if rows:
                    part = part[_indices(place.buffers[rows].read(), len(part), source)]
                place.buffers[buffer].put(self.loaded(place.run, source, part))
            case Store(target, region, buffer):
                part = _part(place.memory[target], region, values, target)
                found = self.stored(place.run, place.buffers[buffer].read())
                if found.size != part.size:
                    raise TargetError(f"{found.shape} of {buffer} is stored to {part.shape}")
                part[...] = found.reshape(part.shape)
            case Compute(op, outputs, inputs, attributes):
                given = [place.buffers[name].wide() for name in inputs]
                try:
                    found = TILE_OPS[op].body(given, _numbers(attributes, values))
                except ValueError as e:
                    shapes = ", ".join(
                        f"{name} {list(one.shape)}" for name, one in zip(inputs, given, strict=True)
                    )
                    raise TargetError(f"{op} cannot take {shapes}") from e
                for name, result in zip(outputs, found, strict=True):
                    place.buffers[name].put(result)

    def _show(self, run: Run, memory: Mapping[str, np.ndarray], watch: Watch) -> None:
        kernel = self._kernels[run.kernel]
        results = [
            memory[name].reshape(tensor.shape)
            for tensor, name in zip(kernel.outputs, run.results, strict=True)
        ]
        _show(run.module, kernel.composite, results, watch)


def _show(module: str, composite: str, results: Sequence[np.ndarray], watch: Watch) -> None:
    """Let `watch` see results, views of memory, and put in place what it gives."""
    given = watch(module, composite, results)
    for values, instead in zip(results, given or (), strict=given is not None):
        values[...] = instead


def _numbers(
    attributes: Sequence[tuple[str, Sum | float]], values: Mapping[str, int]
) -> dict[str, float]:
    return {
        key: value.value(values) if isinstance(value, Sum) else value for key, value in attributes
    }


def _part(
    array: np.ndarray, region: Sequence[Span], values: Mapping[str, int], name: str
) -> np.ndarray:
    """A view of a region, which must lie inside."""
    if len(region) != array.ndim:
        raise TargetError(f"{name} has {array.ndim} axes, its region {len(region)}")
    slices: list[slice] = []
    for span, length in zip(region, array.shape, strict=True):
        start, count = span.start.value(values), span.count.value(values)
        if start < 0 or count < 0 or start + count > length:
            raise TargetError(f"{start}:{start + count} of {name} is outside its {length}")
        slices.append(slice(start, start + count))
    return array[tuple(slices)]


def _indices(buffer: np.ndarray, length: int, name: str) -> np.ndarray:
    indices = buffer.reshape(-1).astype(np.int64)
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= length:
        raise TargetError(f"a row of {name} is asked for that is outside its {length}")
    return indices


def _check_argument(given: np.ndarray, declared: Tensor) -> None:
    if given.dtype == DTYPES[declared.dtype] and given.size == prod(declared.shape):
        return
    raise TargetError(
        f"{declared.name} is {declared.type_text}, was given {given.dtype}{list(given.shape)}"
    )


class Emulator:
    """The driver that needs no hardware."""

    name = "emulator"

    def __init__(self, partition: Callable[..., EmulatedPartition] = EmulatedPartition) -> None:
        self._partition = partition

    def probe(self) -> tuple[str, ...]:
        """Nothing is missing."""
        return ()

    def compile(self, tiles: str) -> bytes:
        """The text itself is what is run."""
        return tiles.encode()

    def load(self, compiled: bytes, *, where: str) -> LoadedPartition:
        """Parse it.

        Raises:
            TargetError: The text is no tile program, or one that cannot run.
        """
        return self._partition(compiled.decode(), where=where)
