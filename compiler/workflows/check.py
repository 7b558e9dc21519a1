"""config -> what would be built, and everything that is wrong with it, reading no weight."""

import os
from dataclasses import dataclass, replace
from math import prod

from compiler.bundle_place import existing_bundle
from compiler.config import BuildConfig
from compiler.contracts.errors import CompilerError, CompilerErrors, TargetError
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.target_base import Target
from compiler.contracts.weights import DTYPES
from compiler.stages.package import check_space
from compiler.stages.rewrite import rewrite
from compiler.workflows.folding import fold_programs
from compiler.workflows.frontend import enter, locate
from compiler.workflows.plan import plan_build
from compiler.workflows.sharding import shard_programs


@dataclass(frozen=True)
class PhasePlan:
    """One graph: tokens of a call, nodes after the last pass, parameters that it reads."""

    phase: str
    tokens: int
    nodes: int
    parameters: int


@dataclass(frozen=True)
class PassPlan:
    """One pass on one phase: what it would rewrite and decline."""

    name: str
    phase: str
    rewrites: int
    skips: int


@dataclass(frozen=True)
class Plan:
    """What a build would make.

    Attributes:
        name: The bundle's name.
        bundle: Where it would be written, or stands already.
        target: Who would build it.
        dtype: `backend.dtype`.
        model_type: Of the checkpoint.
        layers: Decoder layers.
        window: Prefill window P.
        context: Positions of the cache C.
        disk_bytes: Parameters in the bundle, of all ranks; modules and snapshots add a few MB.
        memory_bytes: Parameters and caches at run time; activations and the process add to it.
        cache_bytes: Of which the caches.
        phases: The graphs, of one rank.
        passes: The passes in order.
    """

    name: str
    bundle: str
    target: str
    dtype: str
    model_type: str
    layers: int
    window: int
    context: int
    disk_bytes: int
    memory_bytes: int
    cache_bytes: int
    phases: tuple[PhasePlan, ...]
    passes: tuple[PassPlan, ...]


@dataclass(frozen=True)
class CheckResult:
    """`plan` is None where an error came before it."""

    ok: bool
    errors: tuple[CompilerError, ...]
    plan: Plan | None


def check(config: BuildConfig) -> CheckResult:
    """Do all of a build that needs no weight: parse, locate, trace, rewrite, add up."""
    try:
        plan, errors = _planned(config)
    except CompilerErrors as error:
        return CheckResult(ok=False, errors=error.errors, plan=None)
    except CompilerError as error:
        return CheckResult(ok=False, errors=(error,), plan=None)
    return CheckResult(ok=not errors, errors=tuple(errors), plan=plan)


def _planned(config: BuildConfig) -> tuple[Plan, list[CompilerError]]:
    checkpoint = locate(config, progress=Progress(), is_hashed=False)
    decided = plan_build(config, checkpoint)
    # The model's own numbers would need its weights; the probe's say the same of the passes.
    is_numeric = config.verify in ("probe", "model")
    entered = enter(replace(config, verify="probe") if is_numeric else config, checkpoint)
    rewritten = rewrite(
        entered.programs, decided.passes, is_verified=config.verify != "off", probe=entered.probe
    )
    rewritten = fold_programs(config, rewritten, entered.probe)
    rewritten, ranks = shard_programs(config, rewritten, entered.probe)
    programs = ranks[0]
    is_merged = config.backend.merge_params
    disk_bytes = sum(one.stored_bytes(is_merged=is_merged) for one in ranks)
    cache_bytes = sum(max(_cache_bytes(program) for program in one) for one in ranks)
    shape = config.frontend.shape
    destination = config.workspace_path / config.name
    plan = Plan(
        name=config.name,
        bundle=os.path.relpath(destination),
        target=decided.target.name,
        dtype=config.backend.dtype,
        model_type=str(checkpoint.config["model_type"]),
        layers=next(iter(programs)).layers,
        window=shape.window,
        context=shape.context_or_window,
        disk_bytes=disk_bytes,
        memory_bytes=disk_bytes + cache_bytes,
        cache_bytes=cache_bytes,
        phases=tuple(_phase_plan(program) for program in programs),
        passes=tuple(_pass_plan(record) for record in rewritten.records),
    )
    return plan, [*_unsupported(decided.target, programs), *_in_the_way(config, disk_bytes)]


def _phase_plan(program: Program) -> PhasePlan:
    nodes, parameters = len(program.graph.nodes), len(program.weights)
    return PhasePlan(program.phase, program.tokens, nodes, parameters)


def _pass_plan(record: PassRecord) -> PassPlan:
    return PassPlan(record.name, record.phase, record.rewrites, len(record.skips))


def _cache_bytes(program: Program) -> int:
    """Bytes of the inputs that are updated in place."""
    return sum(
        prod(int(axis) for axis in spec.shape) * DTYPES[spec.dtype].itemsize
        for spec in program.inputs()
        if spec.name in program.aliases.values()
    )


def _in_the_way(config: BuildConfig, needed: int) -> list[CompilerError]:
    """What would stop the bundle from being written."""
    destination = config.workspace_path / config.name
    try:
        existing_bundle(destination)
        check_space(destination, needed)
    except CompilerError as error:
        return [error]
    return []


def _unsupported(target: Target, programs: ProgramSet) -> list[CompilerError]:
    """Every node that the target would refuse."""
    return [
        TargetError(
            f"target '{target.name}' cannot lower it: {skip.reason}",
            where=f"{program.phase}: {skip.node}",
        )
        for program in programs
        for skip in target.unsupported(program)
    ]
