"""Measure us and other runtimes on the same weights, block by block in one run.

    python benchmarks/peers.py --model qwen1.5-0.5b-shape --plot roofline.png --json peers.json
    python benchmarks/peers.py --model smollm2 --only ours,openvino --dtypes fp32,bf16

Checkpoints, exports and bundles are made once in a work folder and used again. How it is measured,
and what the floors are, is in docs/benchmarks.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

from benchmarks.contenders import CONTENDERS, load_contender
from benchmarks.contenders.base import Job
from benchmarks.measuring import ContenderError, Plan, Series, Worker, idle_cores, make, run_rounds
from benchmarks.models import MODELS, checkpoint_of, shape_of
from benchmarks.optional import drawing
from benchmarks.peers_table import (
    KINDS,
    Figures,
    disagreements,
    figures_of,
    floor_of,
    headers_of,
    ratios_of,
    rows_of,
)
from benchmarks.roof import Roof, best_of
from compiler.terminal import Terminal, plain

_WINDOW, _CONTEXT = 1024, 1280
# Of a core, for a contender that is asked nothing.
_IDLE_CORES = 0.02


@dataclass(frozen=True)
class Entry:
    """A contender in one dtype, and the class in which it is compared."""

    name: str
    dtype: str
    kind: str


def main() -> None:
    """Make, measure, print."""
    options = _options()
    if options.plot is not None:
        drawing()  # it is missed now, not after minutes
    terminal = Terminal(is_json=False, is_quiet=False)
    plan = Plan(rounds=options.rounds)
    if options.quick:
        plan = Plan(rounds=1, prompts=(128, 1024), steps=4, seconds=0.0, attempts=1)
    checkpoint = checkpoint_of(options.model, options.work)
    entries = list(_entries(options.only, options.dtypes, terminal))
    found: list[Figures] = []
    roofs: list[Roof] = []
    for kind in KINDS:
        # Contenders of a class are held against each other; all at once would not fit in memory.
        chosen = [entry for entry in entries if entry.kind == kind]
        if chosen:
            figures, seen = _measure(chosen, checkpoint, options, plan, terminal)
            found += figures
            roofs += seen
    if not roofs:
        raise SystemExit("nothing was measured")
    _report(found, best_of(roofs), checkpoint, options, plan, terminal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--only", help=f"contenders, separated by commas: {','.join(CONTENDERS)}")
    parser.add_argument("--dtypes", help="their dtypes, or classes of them, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=_WINDOW, help="of our bundles")
    parser.add_argument("--quick", action="store_true", help="one short round, whatever the load")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    unknown = set((options.only or "").split(",")) - {"", *CONTENDERS}
    if unknown:
        parser.error(f"unknown contenders: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are 1 or more")
    return options


def _entries(only: str | None, dtypes: str | None, terminal: Terminal) -> Iterator[Entry]:
    """Those that are asked for and installed; of the others it is said how to get them."""
    names = only.split(",") if only else list(CONTENDERS)
    for name in (name for name in CONTENDERS if name in names):
        contender = load_contender(name)
        lacking = contender.lacks()
        if lacking:
            terminal.line(f"{name}: not installed ({lacking}): {contender.install}")
            continue
        for dtype, kind in contender.dtypes.items():
            if dtypes is None or {dtype, kind} & set(dtypes.split(",")):
                yield Entry(name, dtype, kind)


def _measure(
    entries: Sequence[Entry],
    checkpoint: Path,
    options: argparse.Namespace,
    plan: Plan,
    terminal: Terminal,
) -> tuple[list[Figures], list[Roof]]:
    """One class: each contender made, then all of them alive, one at work at a time."""
    place = checkpoint.parent
    log = place / "log.txt"
    failed: list[Series] = []
    with ExitStack() as stack:
        roof = stack.enter_context(closing(Worker("roof", options.threads, log)))
        workers: list[Worker] = []
        for entry in entries:
            job = Job(
                checkpoint=checkpoint,
                folder=place / f"{entry.name}-{entry.dtype}-{options.window}",
                dtype=entry.dtype,
                threads=options.threads,
                window=options.window,
                context=_CONTEXT,
            )
            terminal.note(f"making {entry.name} {entry.dtype}")
            try:
                make(entry.name, job, log)
                workers.append(stack.enter_context(closing(Worker(entry.name, job, log))))
            except ContenderError as error:
                failed.append(Series(entry.name, entry.dtype, problem=str(error)))
        series, blocks = run_rounds(workers, roof, plan, say=terminal.note)
        for name, cores in idle_cores([*workers, roof]).items():
            if cores > _IDLE_CORES:
                terminal.line(f"{name} kept {cores:.2f} cores busy while it was asked nothing")
    kinds = {(entry.name, entry.dtype): entry.kind for entry in entries}
    figures = [
        figures_of(one, kinds[one.name, one.dtype], rounds=plan.rounds)
        for one in (*series, *failed)
    ]
    clean = [block.value for block in blocks if block.is_clean]
    return figures, clean or [block.value for block in blocks]


def _report(
    figures: Sequence[Figures],
    roof: Roof,
    checkpoint: Path,
    options: argparse.Namespace,
    plan: Plan,
    terminal: Terminal,
) -> None:
    shape = shape_of(checkpoint)
    floors = {kind: floor_of(shape, roof, kind, plan.prompts) for kind in KINDS}
    for kind in KINDS:
        chosen = [one for one in figures if one.kind == kind]
        if chosen:
            terminal.line(f"\n{options.model}, {kind} weights, {options.threads} threads")
            terminal.table(headers_of(plan.prompts), rows_of(chosen, floors[kind], plan.prompts))
    peaks = ", ".join(f"{kind} {peak / 1e9:.0f} Gop/s" for kind, peak in roof.peaks.items())
    terminal.line(f"\nmeasured here: memory read {roof.bandwidth / 1e9:.1f} GB/s; {peaks}")
    for said in disagreements(figures):
        terminal.line(said)
    if options.json is not None:
        content = {
            "model": options.model,
            "threads": options.threads,
            "rounds": plan.rounds,
            "roof": plain(roof),
            "figures": [plain(one) for one in figures],
            "floors": [plain(one) for one in floors.values()],
            "ratios": [plain(one) for one in ratios_of(figures)],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        from benchmarks.roofline import plot_roofline

        plot_roofline(figures, shape, roof, options.plot, title=options.model)


if __name__ == "__main__":
    main()
