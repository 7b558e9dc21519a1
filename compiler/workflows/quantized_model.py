"""config -> what a quantizer measures on: the programs behind all passes."""

from dataclasses import replace

from compiler import registry
from compiler.config import BuildConfig
from compiler.contracts.program import ProgramSet
from compiler.contracts.weights import CheckpointRef
from compiler.stages.rewrite import rewrite
from compiler.workflows.frontend import enter
from compiler.workflows.pass_plan import planned_passes


def quantized_programs(config: BuildConfig, checkpoint: CheckpointRef) -> ProgramSet:
    """Both phases behind the passes of the build; what is to be verified is verified by the build.

    The target need not be able to build here.
    """
    target = registry.load_target(config.backend.type, where=config.place("backend.type"))()
    passes = planned_passes(config, target.passes(config.target_options()), target=target.name)
    programs = enter(replace(config, verify="off"), checkpoint).programs
    relaxed = [replace(planned, expected=None) for planned in passes]
    return rewrite(programs, relaxed, is_verified=False).programs
