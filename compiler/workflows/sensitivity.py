"""config -> what rounding each weight costs, and which modules stay floats for a budget."""

import numpy as np
from pydantic import TypeAdapter

from compiler.config import BuildConfig
from compiler.contracts.errors import ConfigError
from compiler.contracts.program import ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.sensitivity import Exclusion, ModuleLoss, Sensitivity
from compiler.contracts.weights import CheckpointRef
from compiler.stages.sensitivity import RoundingLoss, exclude_for, ranked
from compiler.workflows.behind_passes import final_programs
from compiler.workflows.frontend import locate
from compiler.workflows.measurement_key import measurement_key
from compiler.workflows.samples import samples_of
from compiler.workflows.sensitivity_cache import remembered

_RANKING = TypeAdapter(tuple[ModuleLoss, ...])
_EXCLUSION = TypeAdapter(Exclusion)


def sensitivity(
    config: BuildConfig, *, samples: int, progress: Progress | None = None
) -> Sensitivity:
    """Rank every weight that `frontend.quantize` rounds by what that costs.

    Args:
        config: With a quantizer of weights.
        samples: Windows of the calibration data, at most `dataset.nsamples`.
        progress: Told the layers, and each measurement for `target_loss`.

    Raises:
        ConfigError: Nothing is quantized.
        CheckFailed: The float model gives what is no number.
        CompilerError: What locating the model, its passes or the calibration data raises.
    """
    progress = progress or Progress()
    _refuse_floats(config)
    checkpoint = locate(config, progress=progress)
    read = samples_of(config, checkpoint, progress.note, most=samples)
    programs = final_programs(config, checkpoint)
    ranking, exclusion = _measured(config, programs, checkpoint, read.tokens, progress=progress)
    samples, length = read.tokens.shape
    return Sensitivity(read.source, samples, length, ranking, exclusion)


def excluded_for(
    config: BuildConfig,
    programs: ProgramSet,
    checkpoint: CheckpointRef,
    tokens: np.ndarray,
    *,
    progress: Progress,
) -> tuple[str, ...]:
    """The modules that `frontend.quantize.target_loss` keeps as floats; none without it.

    They are what to add to the `exclude` of annotate-int8-qdq, whose run on new programs then gives
    what is built.

    Args:
        config: The build.
        programs: Behind all passes, as if the budget were not there; left as they are.
        checkpoint: Their weights, hashed.
        tokens: int64 [samples, tokens] of the calibration data.
        progress: Told of the measurements.

    Raises:
        CheckFailed: The float model gives what is no number.
    """
    quantize = config.frontend.quantize
    if quantize is None or quantize.target_loss is None:
        return ()
    _, exclusion = _measured(config, programs, checkpoint, tokens, progress=progress)
    assert exclusion is not None, "there is a budget"
    return exclusion.modules


def _measured(
    config: BuildConfig,
    programs: ProgramSet,
    checkpoint: CheckpointRef,
    tokens: np.ndarray,
    *,
    progress: Progress,
) -> tuple[tuple[ModuleLoss, ...], Exclusion | None]:
    """The ranking, and what the budget leaves out; both from the cache where they are there."""
    assert config.frontend.quantize is not None, "refused"
    program, budget = programs.programs["prefill"], config.frontend.quantize.target_loss
    key = measurement_key(program, checkpoint, tokens)
    loss = RoundingLoss(program, checkpoint.rows, tokens)
    ranking = remembered(key, _RANKING, lambda: ranked(loss.of_each(progress=progress)))
    if budget is None:
        return ranking, None
    exclusion = remembered(
        f"{key}-{budget!r}",
        _EXCLUSION,
        lambda: exclude_for(loss, ranking, target_loss=budget, progress=progress),
    )
    if not exclusion.remaining:
        said = f"target_loss {budget:g} is less than what any weight costs: all stay floats"
        progress.note(said)
    return ranking, exclusion


def _refuse_floats(config: BuildConfig) -> None:
    quantize = config.frontend.quantize
    if quantize is not None and quantize.kind.weights != "float":
        return
    raise ConfigError(
        "no weight is quantized, so none can cost anything",
        where=config.place("frontend.quantize"),
        hint="name a type that rounds weights, for example `quantize: {type: w8a16}`",
        code="not-quantized",
    )
