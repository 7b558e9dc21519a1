"""`bench`: how fast a bundle runs here, its memory, and how far it is from the floor."""

import argparse

from compiler.cli.bench_tables import print_bench
from compiler.contracts.errors import ConfigError
from compiler.terminal import Terminal, plain


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Measure, and print the figures."""
    _refuse(options)
    from compiler.measuring import Wanted
    from compiler.workflows.bench import BenchRequest, bench

    request = BenchRequest(
        prompt_tokens=tuple(options.prompt_tokens or ()),
        threads=options.threads,
        has_profile=options.profile,
        wanted=Wanted(blocks=options.blocks),
    )
    with terminal.progress() as progress:
        found = bench(options.bundle, request, progress=progress)
    if terminal.is_json:
        terminal.json(plain(found))
    else:
        print_bench(found, terminal)
    return 0


def _refuse(options: argparse.Namespace) -> None:
    """Numbers that mean nothing, before anything is opened."""
    numbers = [
        *(("--prompt-tokens", length) for length in options.prompt_tokens or ()),
        ("--threads", options.threads),
        ("--blocks", options.blocks),
    ]
    for name, value in numbers:
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}", hint="1 or more", code="usage")
