"""`evaluate`: how well a bundle predicts a text, and what it lost against the float model."""

import argparse
import math

from compiler.cli.evaluation_table import print_evaluation
from compiler.contracts.errors import EXIT_CHECK_FAILED, ConfigError
from compiler.terminal import Terminal, plain


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Measure, and print the figures; exit 1 when the perplexity is over the limit."""
    _refuse(options)
    from compiler.workflows.evaluate import EvaluateRequest, evaluate

    limit: float | None = options.max_perplexity_increase
    request = EvaluateRequest(
        text=options.text,
        tokens=options.tokens,
        checkpoint=options.checkpoint,
        threads=options.threads,
        needs_reference=limit is not None,
    )
    with terminal.progress() as progress:
        found = evaluate(options.bundle, request, progress=progress)
    passed = True
    if limit is not None:
        assert found.reference is not None, "it was needed"
        passed = found.reference.perplexity_increase <= limit  # NaN is not
    if terminal.is_json:
        shown = plain(found)
        assert isinstance(shown, dict), "a dataclass"
        terminal.json({"passed": passed, **shown})
    else:
        print_evaluation(found, terminal)
        if limit is not None:
            said = "within" if passed else "over"
            terminal.line(f"{said} the limit of {limit:+.3%}")
    return 0 if passed else EXIT_CHECK_FAILED


def _refuse(options: argparse.Namespace) -> None:
    """Numbers that mean nothing, before anything is opened."""
    limit = options.max_perplexity_increase
    refusals = (
        (options.tokens is not None and options.tokens < 2, "--tokens", "2 or more"),
        (options.threads is not None and options.threads < 1, "--threads", "1 or more"),
        (
            limit is not None and not (math.isfinite(limit) and limit >= 0),
            "--max-perplexity-increase",
            "0 or more: 0.02 allows two per cent",
        ),
    )
    for is_wrong, name, hint in refusals:
        if is_wrong:
            value = getattr(options, name.removeprefix("--").replace("-", "_"))
            raise ConfigError(f"{name} is {value}", hint=hint, code="usage")
