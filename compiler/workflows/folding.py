"""config and rewritten programs -> a decode program of several prompts, by the registered pass."""

from dataclasses import replace

from compiler.config import FOLD_PASS, BuildConfig, PassSpec, build_passes
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.target_base import Target
from compiler.numerics.probe import ProbeModel
from compiler.stages.fold import fold
from compiler.stages.rewrite import Rewritten
from compiler.workflows.own_passes import listed_errors, recorded

_BATCH = "frontend.shape.batch"


def batch_violations(config: BuildConfig, target: Target) -> list[CompilerError]:
    """What stands against `batch`, and a fold pass in the list of passes."""
    batch = config.frontend.shape.batch
    found = listed_errors(
        config,
        FOLD_PASS,
        said="behind all others",
        hint="leave it out, and write `batch:` under frontend.shape",
        code="fold-pass",
    )
    if batch == 1:
        return found
    place = config.place(_BATCH)
    ways = config.frontend.model_kwargs.tp
    if not target.has_slots:
        message = f"target '{target.name}' serves one prompt at a time, not {batch}"
        found.append(ConfigError(message, where=place, hint="write `batch: 1`", code="one-prompt"))
    if ways > 1:
        message = f"{batch} prompts at once are not divided between {ways} ranks"
        hint = "write `batch: 1`, or `tp: 1` under frontend.model_kwargs"
        found.append(ConfigError(message, where=place, hint=hint, code="one-prompt"))
    return found


def fold_programs(config: BuildConfig, rewritten: Rewritten, probe: ProbeModel | None) -> Rewritten:
    """What was done to the programs, the fold pass included.

    Raises:
        PassError: The decode program cannot be folded.
        CheckFailed: A prompt of the probe does not get what it gets alone.
    """
    batch = config.frontend.shape.batch
    if batch == 1:
        return rewritten
    place = config.place(_BATCH)
    (folding,) = build_passes(
        [PassSpec(FOLD_PASS, {"batch": batch}, place)], folder=config.path.parent
    )
    folded = fold(
        rewritten.programs,
        folding,
        batch=batch,
        place=place,
        invariants=rewritten.invariants,
        is_verified=config.verify != "off",
        probe=probe,
    )
    done = recorded(rewritten, FOLD_PASS, [folded.programs.programs["decode"]], [folded.record])
    return replace(done, programs=folded.programs)
