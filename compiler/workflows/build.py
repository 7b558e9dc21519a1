"""config -> bundle: checkpoint, trace, rewrite, lower, package."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compiler.bundle_place import kept_bundle
from compiler.config import BuildConfig
from compiler.contracts.errors import BundleError, CompilerError, CompilerErrors, raise_all
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.progress import Progress, StageRecord
from compiler.contracts.target_base import Lowered, Target
from compiler.contracts.weights import CheckpointRef
from compiler.stages.lower import lower_program
from compiler.stages.open_bundle import open_bundle
from compiler.stages.package import BundleDraft, ModuleDraft, check_space, package
from compiler.stages.rewrite import Rewritten, rewrite
from compiler.workflows.frontend import enter, locate
from compiler.workflows.plan import Plan, plan_build
from compiler.workflows.processes import run_parallel
from compiler.workflows.sharding import shard_programs
from compiler.workflows.stage_clock import StageClock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """What a build did; `stages` and `passes` are empty when the bundle was up to date."""

    bundle: Path
    digest: str
    up_to_date: bool
    stages: tuple[StageRecord, ...]
    passes: tuple[PassRecord, ...]


def build(
    config: BuildConfig,
    *,
    output: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Build the bundle that `config` describes.

    Args:
        config: Checked configuration.
        output: The bundle's folder; by default `<workspace.path>/<name>`.
        force: Replace another bundle that stands there.
        progress: Receives stages and their progress.

    Raises:
        CompilerError: Whatever is wrong, by its kind; nothing half-written is left.
    """
    clock = StageClock(progress or Progress())
    destination = (output or config.workspace_path / config.name).absolute()
    with clock.stage("checkpoint"):
        checkpoint = locate(config, progress=clock.progress)
        plan = plan_build(config, checkpoint)
    if kept_bundle(destination, plan.digest, force=force) is not None:
        _check_whole(destination)
        clock.progress.note(f"{destination} is up to date")
        return BuildResult(destination, plan.digest, True, (), ())
    with clock.stage("trace"):
        entered = enter(config, checkpoint)
    with clock.stage("rewrite"):
        rewritten = rewrite(
            entered.programs,
            plan.passes,
            is_verified=config.verify != "off",
            probe=entered.probe,
            progress=clock.progress,
        )
        rewritten, ranks = shard_programs(config, rewritten, entered.probe)
        check_space(destination, sum(programs.stored_bytes() for programs in ranks))
    with tempfile.TemporaryDirectory(prefix="graphlower-") as scratch:
        with clock.stage("lower"):
            modules = _lower(config, plan.target, ranks, Path(scratch))
        with clock.stage("package"):
            draft = _draft(config, checkpoint, plan, rewritten=rewritten, modules=modules)
            bundle = package(destination, draft, checkpoint, force=force, progress=clock.progress)
    logger.info("built %s, digest %s", bundle.path, plan.digest)
    return BuildResult(bundle.path, plan.digest, False, tuple(clock.records), rewritten.records)


def _check_whole(destination: Path) -> None:
    """Refuse to call a damaged bundle up to date; building again is what `force` is for."""
    try:
        open_bundle(destination)
    except CompilerError as error:
        damages = error.errors if isinstance(error, CompilerErrors) else (error,)
        hint = "replace the bundle with --force"
        raise_all([BundleError(d.message, where=d.where, hint=hint, code=d.code) for d in damages])


def _lower(
    config: BuildConfig, target: Target, ranks: Sequence[ProgramSet], scratch: Path
) -> tuple[ModuleDraft, ...]:
    """Every graph in a process of its own, at most `workspace.workers` at once.

    Ranks whose graphs are equal, as they are but for their weights, have one compiled for them.
    """
    options = config.target_options()
    programs = [(rank, program) for rank, one in enumerate(ranks) for program in one]
    graphs = [program.model().SerializeToString(deterministic=True) for _, program in programs]
    first = {graph: index for index, graph in reversed(list(enumerate(graphs)))}
    folders = {
        index: scratch / f"{programs[index][1].phase}-{programs[index][0]}"
        for index in sorted(first.values())
    }
    calls = [
        (type(target), programs[index][1], options, folder) for index, folder in folders.items()
    ]
    results = run_parallel(lower_program, calls, workers=config.workspace.workers)
    lowered = dict(zip(folders, results, strict=True))
    return tuple(
        _module(program, lowered[first[graph]], folders[first[graph]], rank=rank)
        for (rank, program), graph in zip(programs, graphs, strict=True)
    )


def _module(program: Program, lowered: Lowered, folder: Path, *, rank: int) -> ModuleDraft:
    return ModuleDraft(
        phase=program.phase,
        rank=rank,
        tokens=program.tokens,
        source_folder=folder,
        inputs=program.inputs(),
        outputs=program.outputs(),
        params=lowered.params,
        weights=program.weights,
        aliases=program.aliases,
        logits_of=program.logits_of,
        target=lowered.facts,
    )


def _kept(record: PassRecord) -> dict[str, object]:
    """What the manifest keeps of a record: errors depend on the machine that measured them."""
    measured = ("error", "float64_error")
    return {key: value for key, value in asdict(record).items() if key not in measured}


def _draft(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    plan: Plan,
    *,
    rewritten: Rewritten,
    modules: Sequence[ModuleDraft],
) -> BundleDraft:
    logits = next(spec for spec in modules[0].outputs if spec.name == "logits")
    return BundleDraft(
        name=config.name,
        digest=plan.digest,
        target=plan.target.name,
        config=config.resolved(),
        checkpoint={
            "sha256": checkpoint.digest,
            "model_type": checkpoint.config.get("model_type"),
            "architectures": checkpoint.config.get("architectures"),
        },
        window=config.frontend.shape.window,
        context=config.frontend.shape.context_or_window,
        vocabulary=int(logits.shape[-1]),
        modules=tuple(modules),
        passes=tuple(_kept(record) for record in rewritten.records),
        tools=plan.tools,
        snapshots=rewritten.snapshots,
        merge_params=config.backend.merge_params,
    )
