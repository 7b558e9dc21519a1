"""Programs behind passes, for whoever measures: what is to be verified is verified by the build."""

from collections.abc import Sequence
from dataclasses import replace

from compiler.config import BuildConfig
from compiler.contracts.program import ProgramSet
from compiler.contracts.weights import CheckpointRef
from compiler.pass_order import PlannedPass
from compiler.stages.rewrite import rewrite
from compiler.workflows.frontend import enter
from compiler.workflows.pass_plan import passes_of


def rewritten(programs: ProgramSet, passes: Sequence[PlannedPass]) -> ProgramSet:
    """Rewrite `programs` in place, unverified and whatever `expect:` says."""
    relaxed = [replace(planned, expected=None) for planned in passes]
    return rewrite(programs, relaxed, is_verified=False).programs


def final_programs(config: BuildConfig, checkpoint: CheckpointRef) -> ProgramSet:
    """Both phases behind all passes of the build."""
    programs = enter(replace(config, verify="off"), checkpoint).programs
    return rewritten(programs, passes_of(config))
