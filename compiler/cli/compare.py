"""`compare`: targets against a reference, on equal inputs."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from compiler.contracts.comparison import Comparison
from compiler.contracts.errors import EXIT_CHECK_FAILED, ConfigError
from compiler.terminal import Terminal, plain


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Compare, and print a table; exit 1 when anything differs, or nothing was compared."""
    from compiler.config import load_config
    from compiler.workflows.compare import DEFAULT_PROMPTS, compare

    if options.tokens < 1:
        raise ConfigError(f"--tokens is {options.tokens}", hint="at least 1", code="usage")
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}", hint="0 or more", code="usage")
    targets = _targets(options.targets)
    prompts = DEFAULT_PROMPTS if options.prompts is None else _prompts(options.prompts)
    config = load_config(options.yaml, overrides=options.overrides)
    with terminal.progress() as progress:
        comparisons = compare(
            config,
            targets=targets,
            prompts=prompts,
            tokens=options.tokens,
            seed=options.seed,
            progress=progress,
        )
    passed = bool(comparisons) and all(comparison.passed for comparison in comparisons)
    if terminal.is_json:
        terminal.json({"passed": passed, "comparisons": [_json(one) for one in comparisons]})
    else:
        _print(comparisons, terminal)
        terminal.line("passed" if passed else "failed")
    return 0 if passed else EXIT_CHECK_FAILED


def _targets(text: str) -> tuple[str, ...]:
    """The names, without aliases: the reference and at least one other."""
    from compiler.registry import resolve_target

    names = [name.strip() for name in text.split(",")]
    targets = tuple(resolve_target(name, where="--targets") for name in names)
    if len(targets) < 2 or len(set(targets)) < len(targets):
        raise ConfigError(
            f"'{text}' does not name two different targets",
            where="--targets",
            hint="write the reference, then what to hold against it: --targets torch,llvm",
            code="usage",
        )
    return targets


def _prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line, blank lines left out; from a `.json` file, a list of texts."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as e:
        message = f"cannot be read: {e.strerror}"
        raise ConfigError(message, where=str(path), hint="see --prompts", code="usage") from e
    except ValueError as e:
        message = f"is not {'JSON' if path.suffix == '.json' else 'UTF-8'}: {e}"
        raise ConfigError(message, where=str(path), hint="see --prompts", code="usage") from e
    if not isinstance(found, list) or not all(isinstance(prompt, str) for prompt in found):
        hint = 'write ["first prompt", "second prompt"]'
        raise ConfigError("is not a list of texts", where=str(path), hint=hint, code="usage")
    prompts = tuple(prompt for prompt in found if prompt.strip())
    if not prompts:
        raise ConfigError("holds no prompt", where=str(path), hint="write one a line", code="usage")
    return prompts


def _json(comparison: Comparison) -> dict[str, object]:
    return {
        "reference": comparison.reference,
        "candidate": comparison.candidate,
        "level": comparison.level,
        "tensors": plain(comparison.tensors),
        "top1_agreement": comparison.top1_agreement,
        "greedy_agreement": comparison.greedy_agreement,
        "first_divergence": plain(comparison.first_divergence),
    }


def _print(comparisons: Sequence[Comparison], terminal: Terminal) -> None:
    headers = ("tensor", "status", "max abs", "max rel", "cosine")
    for one in comparisons:
        terminal.line(f"{one.candidate} against {one.reference}, {one.level}")
        rows = [
            (t.name, t.status, f"{t.max_abs:.3g}", f"{t.max_rel:.3g}", f"{t.cosine:.6f}")
            for t in one.tensors
        ]
        terminal.table(headers, rows)
        terminal.line(
            f"top-1 agreement {one.top1_agreement:.1%} (at least {one.min_top1:.1%}), "
            f"greedy agreement {one.greedy_agreement:.1%} (at least {one.min_greedy:.1%})"
        )
        first = one.first_divergence
        if first is not None:
            terminal.line(
                f"greedy decoding first differs in prompt {first.prompt}, step {first.step}: "
                f"{first.reference} against {first.candidate}"
            )
        if not one.tensors:
            terminal.line("nothing was compared")
