"""Building blocks -> what a target opens: rewritten, lowered in child processes, packaged.

All graphs of all blocks are lowered by the same processes, so that a compiler is loaded once in
each. What one of them raises is kept for the check of its block.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.config import BuildConfig, Dtype
from compiler.conformance.models import Block, block_programs, write_block
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import CompilerError
from compiler.contracts.program import Phase, Program
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Lowered, ProgramModel, Target, TargetOptions
from compiler.stages.lower import lower_program
from compiler.stages.package import package
from compiler.stages.rewrite import Rewritten, rewrite
from compiler.workflows.draft import bundle_draft, module_draft
from compiler.workflows.pass_plan import passes_of
from compiler.workflows.plan import Plan, tool_versions
from compiler.workflows.processes import run_parallel

_WORKERS = 2


@dataclass(frozen=True)
class BlockJob:
    """A block, and the dtype that it is built in."""

    block: Block
    dtype: Dtype

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.block.name}-{self.dtype}"


@dataclass(frozen=True)
class BuiltBlock:
    """What became of a block.

    Attributes:
        traced: Its graphs before any pass, for the reference.
        model: What the target opens; None where there is an error.
        lowered: Phase -> the files that the target wrote, and what it said of them.
        rewritten: Its graphs behind the passes.
        error: Why there is no model.
    """

    traced: ProgramModel
    model: Bundle | ProgramModel | None
    lowered: Mapping[Phase, tuple[Path, Lowered]]
    rewritten: Rewritten | None
    error: Exception | None = None


@dataclass(frozen=True)
class _Entered:
    """A block behind the passes; `error` is what they raised."""

    job: BlockJob
    traced: ProgramModel
    rewritten: Rewritten | None
    error: Exception | None = None


def lower_again(
    target: Target, built: BuiltBlock, options: TargetOptions, *, folder: Path
) -> Mapping[Phase, tuple[Path, Lowered]]:
    """The same graphs once more, in a process that has lowered nothing else.

    Raises:
        Exception: What the target raises.
    """
    assert built.rewritten is not None, "a block that was built"
    programs = built.rewritten.programs.programs
    folders = {phase: folder / phase for phase in programs}
    calls = [(type(target), program, options, folders[p]) for p, program in programs.items()]
    found = run_parallel(lower_program, calls, workers=1)
    return {phase: (folders[phase], one) for phase, one in zip(programs, found, strict=True)}


def build_blocks(
    target: Target,
    jobs: Sequence[BlockJob],
    configs: Mapping[Dtype, BuildConfig],
    *,
    folder: Path,
    seed: int,
) -> Mapping[tuple[str, Dtype], BuiltBlock]:
    """Every job by block and dtype; none of them stops another.

    Args:
        target: That opens programs or bundles.
        jobs: What to build.
        configs: By dtype; passes and options are theirs.
        folder: New; a folder for each job is made in it.
        seed: Of the weights.
    """
    entered = [_entered(job, configs[job.dtype], folder / job.name, seed=seed) for job in jobs]
    lowered = _lowered(target, entered, configs, folder) if target.opens == "bundle" else {}
    return {
        (one.job.block.name, one.job.dtype): _built(target, one, configs, folder, lowered)
        for one in entered
    }


def _entered(job: BlockJob, config: BuildConfig, folder: Path, *, seed: int) -> _Entered:
    checkpoint = write_block(folder / "checkpoint", job.block, seed=seed)
    traced = ProgramModel(block_programs(job.block.options), checkpoint)
    try:
        passes = passes_of(config)
        return _Entered(job, traced, rewrite(block_programs(job.block.options), passes))
    except Exception as error:  # a pass that the target adds may be its own: said in the check
        return _Entered(job, traced, None, error)


_Results = Mapping[tuple[str, Phase], tuple[Path, Lowered | Exception]]


def _lowered(
    target: Target,
    entered: Sequence[_Entered],
    configs: Mapping[Dtype, BuildConfig],
    folder: Path,
) -> _Results:
    """Every graph of every block; what is raised stands for the result."""
    graphs = [
        (one.job, program)
        for one in entered
        if one.rewritten is not None
        for program in one.rewritten.programs
    ]
    if not graphs:
        return {}
    places = [folder / job.name / "lowered" / program.phase for job, program in graphs]
    calls = [
        (type(target), program, configs[job.dtype].target_options(), place)
        for (job, program), place in zip(graphs, places, strict=True)
    ]
    results = run_parallel(lower_or_say, calls, workers=_WORKERS)
    return {
        (job.name, program.phase): (place, result)
        for (job, program), place, result in zip(graphs, places, results, strict=True)
    }


def lower_or_say(
    target_class: type[Target], program: Program, options: TargetOptions, folder: Path
) -> Lowered | Exception:
    """The child's work: what the target gives, or what it raises."""
    try:
        return lower_program(target_class, program, options, folder)
    except CompilerError as error:
        return error
    except Exception as error:  # a stranger's code: what it raises is what the check reports
        return RuntimeError(f"{type(error).__name__}: {error}")


def _built(
    target: Target,
    one: _Entered,
    configs: Mapping[Dtype, BuildConfig],
    folder: Path,
    lowered: _Results,
) -> BuiltBlock:
    if one.rewritten is None:
        return BuiltBlock(one.traced, None, {}, None, one.error)
    programs = one.rewritten.programs
    checkpoint = one.traced.checkpoint
    if target.opens == "program":
        return BuiltBlock(one.traced, ProgramModel(programs, checkpoint), {}, one.rewritten)
    found: dict[Phase, tuple[Path, Lowered]] = {}
    for program in programs:
        place, result = lowered[one.job.name, program.phase]
        if isinstance(result, Exception):
            return BuiltBlock(one.traced, None, {}, one.rewritten, result)
        found[program.phase] = (place, result)
    modules = [
        module_draft(program, found[program.phase][1], found[program.phase][0], rank=0)
        for program in programs
    ]
    digest = hashlib.sha256(one.job.name.encode()).hexdigest()
    plan = Plan(target, (), tool_versions(), digest)
    draft = bundle_draft(
        configs[one.job.dtype], checkpoint, plan, rewritten=one.rewritten, modules=modules
    )
    place = folder / one.job.name / "bundle"
    try:
        bundle = package(place, draft, checkpoint, force=False, progress=Progress())
    except CompilerError as error:
        return BuiltBlock(one.traced, None, found, one.rewritten, error)
    return BuiltBlock(one.traced, bundle, found, one.rewritten)
