"""runner, text -> perplexity: how surprised a model is by what comes next, on average."""

from collections.abc import Sequence

from compiler.comparing.measures import log_softmax, perplexity_from
from compiler.comparing.text_rows import text_rows
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner

_SILENT = Progress()


def perplexity(
    runner: Runner, tokens: Sequence[int], *, context: int, progress: Progress = _SILENT
) -> float:
    """The exponential of the mean negative log-likelihood of `tokens[1:]`, each given its past.

    Args:
        runner: The model.
        tokens: The text, read as `text_rows` says.
        context: Length of a window, at most the runner's; one for all that are compared.
        progress: Told the tokens.

    Raises:
        RunError: Fewer than two tokens.
    """
    rows = text_rows(runner, tokens, context=context)
    total = 0.0
    count = len(tokens) - 1
    for done, (row, following) in enumerate(zip(rows, tokens[1:], strict=True), start=1):
        total -= float(log_softmax(row)[following])
        progress.update(done, count, "tokens")
    return perplexity_from(total / count)
