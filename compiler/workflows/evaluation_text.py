"""The text of an evaluation, as tokens."""

from pathlib import Path

from compiler.config import BuildConfig
from compiler.contracts.errors import ConfigError, RunError
from compiler.contracts.weights import CheckpointRef
from compiler.text import Text, read_text

_HINT = "name a UTF-8 text of two tokens or more"


def tokens_of_file(path: Path, folder: Path, *, limit: int | None, where: str) -> tuple[int, ...]:
    """At most the first `limit` tokens of a text.

    Args:
        path: The text.
        folder: A bundle's or checkpoint's, with the tokenizer's files.
        limit: None for all of them.
        where: What names the text, for errors.

    Raises:
        ConfigError: It cannot be read, is no UTF-8, too short, or there is no tokenizer.
    """
    text = read_text(path, where=where, hint=_HINT)
    try:
        tokens = tuple(Text.open(folder).encode(text)[:limit])
    except RunError as error:
        hint = f"a tokenizer lies beside the weights, in {folder}"
        raise ConfigError(error.message, where=where, hint=hint, code=error.code) from error
    if len(tokens) >= 2:
        return tokens
    message = f"{path.name} has {len(tokens)} tokens, whose perplexity means nothing"
    raise ConfigError(message, where=where, hint=_HINT, code="bad-value")


def tokens_to_evaluate(config: BuildConfig, checkpoint: CheckpointRef) -> tuple[int, ...] | None:
    """Those of the YAML's `evaluate`; None without the section.

    Raises:
        ConfigError: At the text's line in the YAML.
    """
    if config.evaluate is None:
        return None
    return tokens_of_file(
        config.path.absolute().parent / Path(config.evaluate.text).expanduser(),
        checkpoint.path,
        limit=config.evaluate.tokens,
        where=config.place("evaluate.text"),
    )
