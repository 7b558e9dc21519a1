"""runner, text -> perplexity: how surprised a model is by what comes next, on average."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from compiler.comparing.measures import log_softmax
from compiler.contracts.errors import RunError
from compiler.contracts.target_base import Runner


def perplexity(runner: Runner, tokens: Sequence[int], *, context: int) -> float:
    """The exponential of the mean negative log-likelihood of `tokens[1:]`, each given its past.

    Every token but the last is read, one at a time, from an empty cache. A text longer than the
    context is read in consecutive windows of the context's length, each from an empty cache: the
    first tokens of a window are told from little, and two contexts give two perplexities.

    Args:
        runner: The model.
        tokens: The text.
        context: Length of a window, at most the runner's; one for all that are compared.

    Raises:
        RunError: Fewer than two tokens.
    """
    if len(tokens) < 2:
        raise RunError(
            f"the perplexity of {len(tokens)} tokens means nothing", hint="give a longer text"
        )
    total = 0.0
    for position, (token, following) in enumerate(pairwise(tokens)):
        if position % context == 0:
            runner.rewind(0)
        total -= float(log_softmax(runner.extend([token]))[following])
    with np.errstate(over="ignore"):
        return float(np.exp(total / (len(tokens) - 1)))
