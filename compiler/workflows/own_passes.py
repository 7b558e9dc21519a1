"""Passes that the build runs itself: none may be listed; each is recorded like one that is."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from compiler.config import BuildConfig
from compiler.contracts.errors import CompilerError, ConfigError
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.program import Program
from compiler.stages.rewrite import Rewritten, snapshot_name


def listed_errors(
    config: BuildConfig, name: str, *, said: str, hint: str, code: str
) -> list[CompilerError]:
    """An error for each place where the YAML lists the pass `name`."""
    return [
        ConfigError(f"'{name}' is run by the build, {said}", where=spec.place, hint=hint, code=code)
        for spec in (*config.pass_list, *(one.spec for one in config.passes.add))
        if spec.name == name
    ]


def recorded(
    rewritten: Rewritten, name: str, programs: Iterable[Program], records: Sequence[PassRecord]
) -> Rewritten:
    """What was done, with this pass behind all others: its records, and a snapshot of each program.

    Args:
        rewritten: What the passes of the list left.
        name: The pass.
        programs: What it left, of each phase that it changed.
        records: What it did.
    """
    number = 1 + max(int(Path(path).name[:2]) for path in rewritten.snapshots)
    snapshots = {
        snapshot_name(program.phase, number, name): program.model().SerializeToString(
            deterministic=True
        )
        for program in programs
    }
    return replace(
        rewritten,
        records=(*rewritten.records, *records),
        snapshots={**rewritten.snapshots, **snapshots},
    )
