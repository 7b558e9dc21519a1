"""The tokens that a build calibrates on: `dataset`, read where something asks for them."""

from collections.abc import Callable

from compiler.calibration_data import CalibrationSamples, calibration_samples
from compiler.config import BuildConfig
from compiler.contracts.errors import ConfigError, RunError
from compiler.contracts.weights import CheckpointRef
from compiler.text import Text


def needs_samples(config: BuildConfig) -> bool:
    """Whether weights, or the choice of what stays float, depend on calibration data."""
    quantize = config.frontend.quantize
    return quantize is not None and (quantize.is_calibrated or quantize.has_budget)


def samples_of(
    config: BuildConfig,
    checkpoint: CheckpointRef,
    note: Callable[[str], None],
    *,
    most: int | None = None,
) -> CalibrationSamples:
    """Read them. A `seqlen` that the YAML leaves out is cut to the context.

    Args:
        config: Its `dataset`.
        checkpoint: With its tokenizer.
        note: Told where the text that comes with the package takes the place of a file.
        most: Read at most so many samples.

    Raises:
        ConfigError: A sample is longer than the context, or there is no tokenizer.
        DatasetError: The data is missing, damaged, of another form, or too little.
    """
    context = config.frontend.shape.context_or_window
    dataset = config.dataset
    if "seqlen" not in dataset.model_fields_set:
        dataset = dataset.model_copy(update={"seqlen": min(dataset.seqlen, context)})
    if most is not None:
        dataset = dataset.model_copy(update={"nsamples": min(most, dataset.nsamples)})
    if dataset.seqlen > context:
        raise ConfigError(
            f"dataset.seqlen: samples of {dataset.seqlen} tokens do not fit the context of"
            f" {context}",
            where=config.place("dataset.seqlen"),
            hint=f"write `seqlen: {context}` or less",
            code="bad-value",
        )
    try:
        return calibration_samples(
            dataset,
            base=config.path.absolute().parent,
            tokenize=Text.open(checkpoint.path).encode,
            note=note,
        )
    except RunError as error:
        raise ConfigError(
            f"calibration needs a tokenizer: {error.message}",
            where=config.place("frontend.quantize"),
            hint=f"a tokenizer lies beside the weights, in {checkpoint.path}",
            code=error.code,
        ) from error
