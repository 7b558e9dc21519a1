"""What a quantizer decides from data: what stays float, and the codes that GPTQ chooses."""

from dataclasses import replace

from compiler.calibration_data import CalibrationSamples
from compiler.config import BuildConfig
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.quantization import QUANTIZE_TYPES
from compiler.contracts.weights import CheckpointRef
from compiler.workflows.calibration import Calibrated, calibrate_programs
from compiler.workflows.pass_plan import planned_passes
from compiler.workflows.plan import Plan
from compiler.workflows.quantized_model import quantized_programs
from compiler.workflows.sensitivity import excluded_for


def has_budget(config: BuildConfig) -> bool:
    """Whether `target_loss` decides what stays float."""
    quantize = config.frontend.quantize
    return quantize is not None and quantize.target_loss is not None


def is_calibrated(config: BuildConfig) -> bool:
    """Whether weights are chosen on calibration data."""
    quantize = config.frontend.quantize
    return quantize is not None and QUANTIZE_TYPES[quantize.type].weights == "gptq"


def within_budget(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    samples: CalibrationSamples | None,
    *,
    progress: Progress,
) -> BuildConfig:
    """The configuration that leaves out what `target_loss` keeps as floats; itself without one."""
    quantize = config.frontend.quantize
    if quantize is None or quantize.target_loss is None:
        return config
    assert samples is not None, "a budget needs samples"
    programs = quantized_programs(config, checkpoint)
    kept = excluded_for(config, programs, checkpoint, samples.tokens, progress=progress)
    excluded = quantize.model_copy(update={"exclude": (*quantize.exclude, *kept)})
    return replace(config, frontend=config.frontend.model_copy(update={"quantize": excluded}))


def plan_within_budget(
    config: BuildConfig, checkpoint: CheckpointRef, plan: Plan, *, progress: Progress
) -> Plan:
    """The plan whose passes leave out what `target_loss` keeps as floats."""
    decided = within_budget(config, checkpoint, plan.samples, progress=progress)
    before, after = config.frontend.quantize, decided.frontend.quantize
    assert before is not None, "there is a budget"
    assert after is not None, "there is a budget"
    added = plan.target.passes(decided.target_options())
    passes = planned_passes(decided, added, target=plan.target.name)
    return replace(plan, passes=passes, kept_as_floats=after.exclude[len(before.exclude) :])


def calibrated(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    programs: ProgramSet,
    samples: CalibrationSamples | None,
    *,
    progress: Progress,
) -> Calibrated:
    """GPTQ's codes where the type asks for it; else nothing.

    Args:
        config: The build.
        checkpoint: Its weights, hashed.
        programs: Behind all passes.
        samples: What is calibrated on.
        progress: Told of finished layers.
    """
    if not is_calibrated(config):
        return Calibrated({}, checkpoint, ())
    assert samples is not None, "GPTQ needs samples"
    return calibrate_programs(config, checkpoint, programs, samples.tokens, progress=progress)
