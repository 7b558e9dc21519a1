"""One graph on which a pass is tried: a program, the values of its parameters, the lengths to run.

recipe = draw_recipe(FuseRMSNorm(), seed=7)
case = recipe.case()    # the block that it describes, rewritten by the passes before
"""

import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler.contracts.errors import CompilerError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass
from compiler.contracts.program import Program
from compiler.contracts.weight_values import RowReader, value
from compiler.contracts.weights import DTYPES, StoredTensor, Weight
from compiler.numerics.feeds import Lengths, lengths_of, program_feeds
from compiler.numerics.probe import random_rows
from compiler.pass_kit.block_options import BlockOptions, draw_options, simpler_options
from compiler.pass_kit.blocks import block_program
from compiler.pass_kit.earlier_passes import draw_earlier, required_earlier

# Of int8 weights, so that they multiply to about the size of what goes in.
_SCALE = 0.01


@dataclass(frozen=True)
class Case:
    """A graph that is ready to be rewritten and run.

    Attributes:
        program: The graph; never changed, a pass works on a copy.
        tensors: Every tensor of its checkpoint; values follow from name and `seed`.
        lengths: The windows that it is run on.
        vocabulary: Token ids lie below it.
        seed: Of every random value.
        guards: Passes before, whose invariants must hold after the tried one, too.
    """

    program: Program
    tensors: Mapping[str, StoredTensor]
    lengths: tuple[Lengths, ...]
    vocabulary: int
    seed: int
    guards: tuple[Pass, ...] = ()

    def copy(self) -> Program:
        """A program for a pass to change."""
        return self.program.copy()

    def invariants(self) -> tuple[Invariant, ...]:
        """What the passes before promised for the rest of the pipeline, as far as it holds."""
        every = [one for guard in self.guards for one in guard.invariants(self.program)]
        return tuple(one for one in every if not one.violations(self.program))

    def parameters(self, program: Program) -> dict[str, np.ndarray]:
        """Values of the parameters of `program`, this case's or one that a pass made of it."""
        read = seeded_rows(self.tensors, seed=self.seed)
        return {name: value(weight, read) for name, weight in program.weights.items()}

    def inputs(self, lengths: Lengths) -> dict[str, np.ndarray]:
        """Activations for the program, read-only: whoever adapts them makes new ones."""
        vocabulary, seed = self.vocabulary, self.seed
        feeds = program_feeds(self.program, lengths, vocabulary=vocabulary, seed=seed)
        for array in feeds.values():
            array.setflags(write=False)
        return feeds


def case_of(program: Program, *, vocabulary: int = 8, seed: int = 0) -> Case:
    """A program as a case; values of its parameters and inputs are drawn from `seed`.

    Args:
        program: At any point of the pipeline.
        vocabulary: Token ids lie below it.
        seed: Of every random value.
    """
    sources = {s for weight in program.weights.values() for s in _sources(weight)}
    tensors = {
        str(source.attributes[0]): StoredTensor(Path(), 0, source.shape, source.dtype)
        for source in sources
    }
    return Case(program, dict(sorted(tensors.items())), lengths_of(program), vocabulary, seed)


def seeded_rows(tensors: Mapping[str, StoredTensor], *, seed: int) -> RowReader:
    """A reader of random values: floats as the probe has them, int8 over its whole range."""
    floats = random_rows(tensors, seed=seed)

    def read(name: str, start: int, stop: int) -> np.ndarray:
        tensor = tensors[name]
        if tensor.dtype == "int8":
            random_state = np.random.default_rng((seed, zlib.crc32(name.encode())))
            drawn = random_state.integers(-127, 128, tensor.shape)
            return drawn.astype(np.int8)[start:stop]
        rows = floats(name, start, stop)
        if not name.endswith("_scale"):
            return rows
        return (rows.astype(np.float32) * _SCALE).astype(DTYPES[tensor.dtype])

    return read


@dataclass(frozen=True)
class Recipe:
    """How a case is made: a block, and the passes that have run on it before.

    Attributes:
        options: The block.
        earlier: In order.
        kept: Names of those that cannot be left out: what the tried pass requires.
    """

    options: BlockOptions
    earlier: tuple[Pass, ...]
    kept: frozenset[str]

    def __str__(self) -> str:
        one = self.options
        layers = "1 layer" if one.layers == 1 else f"{one.layers} layers"
        heads = f"{one.heads} query and {one.kv_heads} key heads"
        names = ", ".join(earlier.name for earlier in self.earlier)
        after = f"after {names}" if names else "as traced"
        return f"{one.phase}, {layers}, {heads}, seed {one.seed}, {after}"

    def case(self) -> Case | None:
        """The case; None where an earlier pass refuses the block."""
        program = block_program(self.options)
        ran = [one for one in self.earlier if program.phase in one.phases]
        for one in ran:
            try:
                one.run(program)
            except CompilerError:
                return None
            program.prune_parameters()
        guards = tuple(one for one in ran if one.invariants(program))
        options = self.options
        case = case_of(program, vocabulary=options.vocabulary, seed=options.seed)
        return replace(case, guards=guards)

    def simpler(self) -> Iterator["Recipe"]:
        """The recipes that are one step plainer."""
        for one in self.earlier:
            rest = tuple(other for other in self.earlier if other is not one)
            is_needed = any(one.name in other.required() for other in rest)
            if one.name not in self.kept and not is_needed:
                yield replace(self, earlier=rest)
        for options in simpler_options(self.options):
            yield replace(self, options=options)


def draw_recipe(rewriting: Pass, *, seed: int) -> Recipe:
    """A block and passes before it, drawn from `seed`, in a place where `rewriting` may stand."""
    options = draw_options(seed, phases=rewriting.phases)
    draw = random.Random(-1 - seed)
    return Recipe(options, draw_earlier(rewriting, draw), _required_names(rewriting))


def plain_recipe(rewriting: Pass) -> Recipe:
    """The default block behind what `rewriting` requires."""
    options = BlockOptions(phase=rewriting.phases[0])
    return Recipe(options, required_earlier(rewriting), _required_names(rewriting))


def _required_names(rewriting: Pass) -> frozenset[str]:
    return frozenset(one.name for one in required_earlier(rewriting))


def _sources(weight: Weight) -> Iterator[Weight]:
    """The checkpoint tensors of an expression, with shape and dtype."""
    if weight.op == "source":
        yield weight
    for operand in weight.operands:
        yield from _sources(operand)
