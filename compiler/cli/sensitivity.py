"""`sensitivity`: what rounding each weight costs, the costliest first."""

import argparse

from compiler.contracts.errors import ConfigError
from compiler.contracts.sensitivity import Sensitivity
from compiler.terminal import Terminal, plain


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Measure, and print the ranking."""
    if options.samples < 1:
        raise ConfigError(f"--samples is {options.samples}", hint="1 or more", code="usage")
    from compiler.config import load_config
    from compiler.workflows.sensitivity import sensitivity

    config = load_config(options.yaml, overrides=options.overrides, target=options.target)
    with terminal.progress() as progress:
        found = sensitivity(config, samples=options.samples, progress=progress)
    if terminal.is_json:
        terminal.json(plain(found))
    else:
        _print(found, terminal)
    return 0


def _print(found: Sensitivity, terminal: Terminal) -> None:
    left_out = set() if found.exclusion is None else set(found.exclusion.modules)
    rows = [
        (", ".join(one.modules), f"{one.kl:.3e}", "float" if left_out & {*one.modules} else "")
        for one in found.ranking
    ]
    columns = 2 if found.exclusion is None else 3
    headers = ("weight", "nats a token", "stays")
    terminal.table(headers[:columns], [row[:columns] for row in rows])
    terminal.note(f"on {found.samples} windows of {found.tokens} tokens: {found.source}")
    if found.exclusion is not None:
        terminal.line(
            f"{found.exclusion.remaining} of {len(found.ranking)} weights rounded cost "
            f"{found.exclusion.kl:.3e} nats a token together, target_loss is "
            f"{found.exclusion.target_loss:g}"
        )
