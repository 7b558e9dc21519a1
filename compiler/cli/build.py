"""`build`: YAML -> bundle."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compiler.cli.build_log import build_log
from compiler.cli.evaluation_table import print_evaluation
from compiler.contracts.pass_base import PassRecord
from compiler.contracts.progress import StageRecord
from compiler.terminal import Terminal, megabytes, plain

# Of the linears that were calibrated, so many are shown.
_WORST = 4

if TYPE_CHECKING:
    from compiler.checkpoints import LinearRecord
    from compiler.workflows.build import BuildResult


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Build, and print what was done."""
    from compiler.config import load_config
    from compiler.workflows.build import build

    config = load_config(options.yaml, overrides=options.overrides, target=options.target)
    with terminal.progress() as shown, build_log(config, shown) as progress:
        result = build(config, output=options.output, force=options.force, progress=progress)
    if terminal.is_json:
        terminal.json(_json(result))
        return 0
    if not terminal.is_quiet:
        _print_stages(result.stages, terminal)
        _print_passes(result.passes, terminal)
        _print_calibrated(result.calibrated, terminal)
        if result.evaluation is not None:
            print_evaluation(result.evaluation, terminal)
    terminal.line(str(result.bundle))
    return 0


def _json(result: "BuildResult") -> dict[str, object]:
    return {
        "bundle": str(result.bundle),
        "digest": result.digest,
        "up_to_date": result.up_to_date,
        "stages": plain(result.stages),
        "passes": plain(result.passes),
        "calibrated": plain(result.calibrated),
        "evaluation": plain(result.evaluation),
    }


def _print_stages(stages: Sequence[StageRecord], terminal: Terminal) -> None:
    if not stages:
        return
    rows = [(s.name, f"{s.seconds:.1f}", megabytes(s.peak_rss_bytes)) for s in stages]
    total = sum(stage.seconds for stage in stages)
    peak = max(stage.peak_rss_bytes for stage in stages)
    rows.append(("all", f"{total:.1f}", megabytes(peak)))
    terminal.table(("stage", "seconds", "peak memory"), rows)


def _print_passes(passes: Sequence[PassRecord], terminal: Terminal) -> None:
    if not passes:
        return
    rows = [
        (
            record.name,
            record.phase,
            str(record.rewrites),
            str(len(record.skips)),
            _error(record.error),
            _error(record.float64_error),
        )
        for record in passes
    ]
    headers = ("pass", "phase", "rewrites", "skips", "difference", "from float64")
    is_measured = any(record.error is not None for record in passes)
    columns = len(headers) if is_measured else len(headers) - 2
    terminal.table(headers[:columns], [row[:columns] for row in rows])
    for record in passes:
        for skip in record.skips:
            terminal.note(f"{record.name} ({record.phase}) skips {skip.node}: {skip.reason}")


def _print_calibrated(linears: Sequence["LinearRecord"], terminal: Terminal) -> None:
    """The linears that GPTQ gained least on, and what all of them gained."""
    if not linears:
        return
    gains = {one.module: one.error / (one.nearest_error or 1.0) for one in linears}
    worst = sorted(linears, key=lambda one: -gains[one.module])[:_WORST]
    rows = [
        (one.module, f"{one.nearest_error:.1e}", f"{one.error:.1e}", f"{gains[one.module]:.2f}")
        for one in worst
    ]
    terminal.table(("least gained by GPTQ", "rounded", "error", "ratio"), rows)
    total = sum(one.error for one in linears) / (sum(one.nearest_error for one in linears) or 1.0)
    terminal.note(f"GPTQ: {len(linears)} linears, {total:.3f} of the error of rounding to nearest")


def _error(error: float | None) -> str:
    if error is None:
        return "-"
    return f"{error:.1e}" if error else "0"
