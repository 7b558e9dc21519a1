"""config -> bundle: checkpoint, trace, rewrite, lower, package."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.bundle_place import kept_bundle
from compiler.checkpoints import LinearRecord
from compiler.config import BuildConfig
from compiler.contracts.bundle import Bundle
from compiler.contracts.errors import BundleError, CompilerError, CompilerErrors
from compiler.contracts.evaluation import Evaluation
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress, StageRecord
from compiler.contracts.target_base import Target
from compiler.stages.lower import lower_program
from compiler.stages.open_bundle import open_bundle
from compiler.stages.package import ModuleDraft, check_space, package
from compiler.stages.rewrite import rewrite
from compiler.workflows.approval import Approval
from compiler.workflows.draft import bundle_draft, module_draft
from compiler.workflows.folding import fold_programs
from compiler.workflows.frontend import enter, locate
from compiler.workflows.plan import plan_build
from compiler.workflows.processes import run_parallel, scratch_in
from compiler.workflows.quantizing import calibrated, plan_within_budget
from compiler.workflows.sharding import shard_programs
from compiler.workflows.stage_clock import StageClock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """What a build did; `stages` and `passes` are empty when the bundle was up to date.

    `evaluation` is what the YAML's `evaluate` asked for; `calibrated` what GPTQ did to each module.
    """

    bundle: Path
    digest: str
    up_to_date: bool
    stages: tuple[StageRecord, ...]
    passes: tuple[PassRecord, ...]
    evaluation: Evaluation | None = None
    calibrated: tuple[LinearRecord, ...] = ()


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
    with scratch_in(config.scratch_folder):
        return _built(config, output=output, force=force, clock=StageClock(progress or Progress()))


def _built(
    config: BuildConfig, *, output: Path | None, force: bool, clock: StageClock
) -> BuildResult:
    destination = (output or config.workspace_path / config.name).absolute()
    for key in config.without_effect():
        clock.progress.note(f"{key} has no effect here")
    with clock.stage("checkpoint"):
        checkpoint = locate(config, progress=clock.progress)
        plan = plan_build(config, checkpoint, note=clock.progress.note)
    approval = Approval(config, checkpoint, plan.tokens, clock.progress)
    if kept_bundle(destination, plan.digest, force=force) is not None:
        kept = _whole(destination)
        clock.progress.note(f"{destination} is up to date")
        return BuildResult(destination, plan.digest, True, (), (), approval.of_placed(kept))
    quantize = config.frontend.quantize
    if quantize is not None and quantize.has_budget:
        with clock.stage("sensitivity"):
            plan = plan_within_budget(config, checkpoint, plan, progress=clock.progress)
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
        _check_params_space(config, destination, (rewritten.programs,))
    linears: Sequence[LinearRecord] = ()
    if quantize is not None and quantize.is_calibrated:
        with clock.stage("calibrate"):
            whole = rewritten.programs
            found = calibrated(config, checkpoint, whole, plan.samples, progress=clock.progress)
            rewritten = replace(rewritten, programs=found.applied(whole))
            linears, checkpoint = found.linears, found.checkpoint
    if config.frontend.shape.batch > 1:
        with clock.stage("fold"):
            rewritten = fold_programs(config, rewritten, entered.probe)
    ranks: Sequence[ProgramSet] = (rewritten.programs,)
    if config.frontend.model_kwargs.tp > 1:
        with clock.stage("shard"):
            rewritten, ranks = shard_programs(config, rewritten, entered.probe)
            _check_params_space(config, destination, ranks)
    with tempfile.TemporaryDirectory(prefix="graphlower-") as scratch:
        with clock.stage("lower"):
            modules = _lower(config, plan.target, ranks, Path(scratch))
        with clock.stage("package"):
            draft = bundle_draft(config, checkpoint, plan, rewritten=rewritten, modules=modules)
            bundle = package(
                destination,
                draft,
                checkpoint,
                force=force,
                progress=clock.progress,
                approve=approval.approve,
            )
    evaluation = approval.of_placed(bundle)
    logger.info("built %s, digest %s", bundle.path, plan.digest)
    return BuildResult(
        bundle.path,
        plan.digest,
        up_to_date=False,
        stages=tuple(clock.records),
        passes=rewritten.records,
        evaluation=evaluation,
        calibrated=linears,
    )


def _check_params_space(
    config: BuildConfig, destination: Path, ranks: Sequence[ProgramSet]
) -> None:
    is_merged = config.backend.merge_params
    check_space(destination, sum(one.stored_bytes(is_merged=is_merged) for one in ranks))


def _whole(destination: Path) -> Bundle:
    """Refuse to call a damaged bundle up to date; building again is what `force` is for."""
    try:
        return open_bundle(destination)
    except CompilerError as error:
        damages = error.errors if isinstance(error, CompilerErrors) else (error,)
        hint = "replace the bundle with --force"
        said = [BundleError(d.message, where=d.where, hint=hint, code=d.code) for d in damages]
        raise (said[0] if len(said) == 1 else CompilerErrors(said)) from error


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
        module_draft(program, lowered[first[graph]], folders[first[graph]], rank=rank)
        for (rank, program), graph in zip(programs, graphs, strict=True)
    )
