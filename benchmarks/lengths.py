"""How prefill and decode of a bundle grow with the context.

    python benchmarks/lengths.py --bundle build/SmolLM2-135M-fp32-tp1-128-1024 --plot lengths.png

Lengths are 16, 32, 64, ... up to what the bundle's context holds, and that itself less one.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.optional import drawing
from compiler.measuring import Wanted
from compiler.stages.open_bundle import open_bundle
from compiler.terminal import Terminal, plain
from compiler.workflows.bench import BenchRequest, BenchResult, bench

_SHORTEST, _LONGEST = 16, 4096


def lengths_up_to(context: int) -> Iterator[int]:
    """Powers of two; at each of them a token can follow."""
    longest = min(context - 1, _LONGEST)
    length = _SHORTEST
    while length < longest:
        yield length
        length *= 2
    if longest >= 1:
        yield longest


def plot_lengths(found: BenchResult, path: Path) -> None:
    """Prefill for each token of the prompt, and a token after it, over the prompt's length."""
    pyplot = drawing()
    sheet, panels = pyplot.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    lengths = [one.prompt_tokens for one in found.lengths]
    decoded = [one for one in found.lengths if one.decode is not None]
    after = [one.prompt_tokens for one in decoded]
    per_token = [one.prefill.ms / one.prompt_tokens for one in found.lengths]
    panels[0].plot(lengths, per_token, "o-", color="#d62728")
    panels[0].axvline(found.window, color="#888888", linestyle="--", linewidth=1)
    panels[0].annotate(
        f"window, {found.window}",
        (found.window, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -12),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#555555",
    )
    panels[0].set_title("prefill")
    panels[0].set_xlabel("tokens of the prompt")
    panels[0].set_ylabel("ms for each of them")
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("{x:g}")
    step = [one.decode.ms for one in decoded if one.decode is not None]
    floor = [one.floor_ms for one in decoded if one.floor_ms is not None]
    panels[1].plot(after, step, "o-", color="#d62728", label="measured")
    speed = f"read at {found.read_bandwidth / 1e9:.1f} GB/s, measured here"
    panels[1].plot(after, floor, "--", color="black", linewidth=1.2, label=speed)
    panels[1].set_title("decode")
    panels[1].set_xlabel("tokens in the cache")
    panels[1].set_ylabel("ms for a token")
    panels[1].set_ylim(bottom=0)
    panels[1].legend(frameon=False)
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
        panel.grid(visible=True, color="#dddddd", linewidth=0.6)
    is_clean = all(
        figure.is_clean for one in found.lengths for figure in (one.prefill, one.decode) if figure
    )
    mark = "" if is_clean else ", partly under load"
    sheet.suptitle(f"{found.name}, {found.threads} threads{mark}")
    sheet.savefig(path, dpi=130)
    pyplot.close(sheet)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    if options.plot is not None:
        drawing()  # it is missed now, not after minutes
    terminal = Terminal(is_json=False, is_quiet=False)
    context = open_bundle(options.bundle).manifest.context
    request = BenchRequest(
        prompt_tokens=tuple(lengths_up_to(context)),
        threads=options.threads,
        wanted=Wanted(blocks=options.blocks),
    )
    with terminal.progress() as progress:
        found = bench(options.bundle, request, progress=progress)
    from compiler.cli.bench_tables import print_bench

    print_bench(found, terminal)
    if options.json is not None:
        options.json.write_text(json.dumps(plain(found), indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_lengths(found, options.plot)


if __name__ == "__main__":
    main()
