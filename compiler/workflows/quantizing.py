"""What a quantizer decides from data: what stays float, and the codes that GPTQ chooses."""

from collections.abc import Sequence
from dataclasses import replace

from compiler.calibration_data import CalibrationSamples
from compiler.config import BuildConfig
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.workflows.behind_passes import final_programs
from compiler.workflows.calibration import Calibrated, calibrate_programs
from compiler.workflows.pass_plan import passes_of
from compiler.workflows.plan import Plan
from compiler.workflows.sensitivity import excluded_for


def kept_as_floats(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    samples: CalibrationSamples | None,
    *,
    progress: Progress,
) -> tuple[str, ...]:
    """The modules that `target_loss` leaves out of the quantization; none without it."""
    quantize = config.frontend.quantize
    if quantize is None or not quantize.has_budget:
        return ()
    assert samples is not None, "a budget needs samples"
    programs = final_programs(config, checkpoint)
    return excluded_for(config, programs, checkpoint, samples.tokens, progress=progress)


def leaving_out(config: BuildConfig, modules: Sequence[str]) -> BuildConfig:
    """The configuration whose quantizer excludes these modules, too."""
    quantize = config.frontend.quantize
    if quantize is None or not modules:
        return config
    excluded = quantize.model_copy(update={"exclude": (*quantize.exclude, *modules)})
    return replace(config, frontend=config.frontend.model_copy(update={"quantize": excluded}))


def plan_within_budget(
    config: BuildConfig, checkpoint: CheckpointRef, plan: Plan, *, progress: Progress
) -> Plan:
    """The plan whose passes leave out what `target_loss` keeps as floats."""
    kept = kept_as_floats(config, checkpoint, plan.samples, progress=progress)
    return replace(plan, passes=passes_of(leaving_out(config, kept)), kept_as_floats=kept)


def calibrated(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    programs: ProgramSet,
    samples: CalibrationSamples | None,
    *,
    progress: Progress,
) -> Calibrated:
    """GPTQ's codes.

    Args:
        config: The build, whose type asks for them.
        checkpoint: Its weights, hashed.
        programs: Behind all passes.
        samples: What is calibrated on.
        progress: Told of finished layers.
    """
    assert samples is not None, "GPTQ needs samples"
    return calibrate_programs(config, checkpoint, programs, samples.tokens, progress=progress)
