"""`bisect`: the first pass that changes the numbers."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import EXIT_CHECK_FAILED, ConfigError
from compiler.terminal import Terminal, plain

if TYPE_CHECKING:
    from compiler.workflows.bisect import BisectFinding


def main(options: argparse.Namespace, terminal: Terminal) -> int:
    """Search, and print the pass, the layer and the tensor; exit 1 when there is one."""
    from compiler.config import load_config
    from compiler.workflows.bisect import bisect_passes

    tolerance: float | None = options.tolerance
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(f"--tolerance is {tolerance}", hint="0 or more", code="usage")
    config = load_config(options.yaml, overrides=options.overrides, target=options.target)
    folder: Path = options.output or config.workspace_path / "bisect" / config.name
    with terminal.progress() as progress:
        result = bisect_passes(config, folder=folder, tolerance=tolerance, progress=progress)
    if terminal.is_json:
        terminal.json(plain(result))
    else:
        ran = f"{len(result.runs)} graphs run for {len(result.passes)} passes"
        terminal.note(f"{ran}: after pass {', '.join(map(str, result.runs))}")
        if result.finding is None:
            terminal.line("no pass changes the numbers")
        else:
            _print(result.finding, terminal)
    return 0 if result.ok else EXIT_CHECK_FAILED


def _print(finding: "BisectFinding", terminal: Terminal) -> None:
    layer = "outside the layers" if finding.layer is None else str(finding.layer)
    rows = {
        "pass": f"{finding.name} ({finding.place})",
        "phase": finding.phase,
        "layer": layer,
        "node": finding.node or "-",
        "tensor": finding.tensor,
        "numbers": finding.said,
        "written": ", ".join(finding.written) or "-",
    }
    for key, text in rows.items():
        terminal.line(f"{key:<8} {text}")
