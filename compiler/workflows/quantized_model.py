"""config -> what a quantizer measures on: the programs behind all passes, and tokens to read."""

from dataclasses import replace

from compiler import registry
from compiler.calibration_data import CalibrationSamples, calibration_samples
from compiler.config import BuildConfig
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import CheckpointRef
from compiler.stages.rewrite import rewrite
from compiler.text import Text
from compiler.workflows.calibration import sample_length
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


def calibration_tokens(
    config: BuildConfig, checkpoint: CheckpointRef, *, samples: int, progress: Progress
) -> CalibrationSamples:
    """At most `samples` windows of the YAML's `dataset`.

    Raises:
        ConfigError: The section contradicts itself.
        DatasetError: The data is missing, damaged, of another form, or too little.
        RunError: There is no tokenizer.
    """
    chosen = {
        "nsamples": min(samples, config.dataset.nsamples),
        "seqlen": sample_length(config, progress=progress),
    }
    return calibration_samples(
        config.dataset.model_copy(update=chosen),
        base=config.path.absolute().parent,
        tokenize=Text.open(checkpoint.path).encode,
        note=progress.note,
    )
