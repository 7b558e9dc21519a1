"""One walk over a text, for whoever asks a model what comes next."""

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.contracts.errors import RunError
from compiler.contracts.runner import Runner


def text_rows(runner: Runner, tokens: Sequence[int], *, context: int) -> Iterator[np.ndarray]:
    """The logits after every token but the last, float32 [vocabulary]: row i is of `tokens[i + 1]`.

    A text longer than the context is read in consecutive windows of the context's length, each from
    an empty cache: the first tokens of a window are told from little, and two contexts give two
    perplexities. No more is held than one call of the runner gives; two runners walk in lockstep
    under `zip`.

    Args:
        runner: The model; it runs as the rows are taken.
        tokens: The text.
        context: Length of a window, at most the runner's; one for all that are compared.

    Raises:
        RunError: Fewer than two tokens.
    """
    if len(tokens) < 2:
        raise RunError(
            f"the perplexity of {len(tokens)} tokens means nothing", hint="give a longer text"
        )
    for start in range(0, len(tokens) - 1, context):
        runner.rewind(0)
        yield from runner.read_rows(tokens[start : min(start + context, len(tokens) - 1)])
