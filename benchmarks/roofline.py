"""The roofline of a run: what each contender reached, under what was measured as the roof.

S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model for
multicore architectures", CACM 52(4), 2009. The intensity is the model's own: the operations of a
workload over the bytes that it must read at least, so that all contenders of a class stand above
one another, and higher is faster.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import Shape
from benchmarks.optional import drawing, optional
from benchmarks.peers_table import KINDS, Figures
from benchmarks.roof import Roof

_COLOURS: Mapping[str, str] = {
    "ours": "#d62728",
    "torch": "#ff9d2e",
    "onnxruntime": "#2ca02c",
    "onnxruntime-genai": "#17a2a2",
    "openvino": "#1f5fbf",
    "llama.cpp": "#7b4fb5",
}
_MARKERS: Mapping[str, str] = {"fp32": "o", "bf16": "s", "int8": "^", "int4": "D"}
# Peaks whose ratio is less than this have their words in each other's way.
_CLOSE = 1.3
_PEAK_LINES: Mapping[str, str] = {"fp32": "-", "bf16": "--", "int8": ":"}


def points_of(
    figures: Sequence[Figures], shape: Shape
) -> list[tuple[Figures, str, int, float, float]]:
    """Figures, `prefill` or `decode`, prompt, operations a byte, operations a second."""
    found: list[tuple[Figures, str, int, float, float]] = []
    for one in figures:
        for prompt, ms in one.prefill_ms.items():
            work = shape.prefill_operations(prompt)
            intensity = work / shape.read_bytes(one.kind, prompt)
            found.append((one, "prefill", prompt, intensity, work / (ms / 1000)))
        for prompt, speed in one.tokens_per_second.items():
            work = shape.decode_operations(prompt)
            intensity = work / shape.read_bytes(one.kind, prompt + 1)
            found.append((one, "decode", prompt, intensity, work * speed))
    return found


def plot_roofline(
    figures: Sequence[Figures], shape: Shape, roof: Roof, path: Path, *, title: str
) -> None:
    """Two panels, as decode and prefill are three decades apart."""
    pyplot = drawing()
    points = points_of(figures, shape)
    sheet, panels = pyplot.subplots(1, 2, figsize=(15, 7.5), layout="constrained")
    for panel, workload in zip(panels, ("decode", "prefill"), strict=True):
        shown = [point for point in points if point[1] == workload]
        if not shown:
            continue
        _draw_roof(panel, roof, [point[3] for point in shown])
        _draw_points(panel, shown)
        panel.set_title(f"{workload}, {title}")
        panel.set_xlabel("operations for each byte that must be read")
        panel.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("operations a second")
    sheet.legend(
        handles=_legend(figures), loc="outside lower center", ncols=5, frameon=False, fontsize=10
    )
    sheet.savefig(path, dpi=130)
    pyplot.close(sheet)


def _draw_roof(panel, roof: Roof, intensities: Sequence[float]) -> None:
    least, most = min(intensities) / 2, max(intensities) * 2
    across = np.geomspace(least, most, 200)
    slope = across * roof.bandwidth
    for kind, peak in roof.peaks.items():
        line = np.minimum(slope, peak)
        panel.plot(across, line, color="black", linewidth=1.2, linestyle=_PEAK_LINES[kind])
        if slope[-1] > peak:
            # Of two lines that nearly meet, the lower one's words stand below it.
            is_under = any(peak < other < _CLOSE * peak for other in roof.peaks.values())
            panel.annotate(
                f"{kind} product, {peak / 1e9:,.0f} Gop/s",
                (most, peak),
                xytext=(-4, -4 if is_under else 4),
                textcoords="offset points",
                ha="right",
                va="top" if is_under else "bottom",
                fontsize=9,
            )
    if slope[-1] <= max(roof.peaks.values()):
        panel.annotate(
            f"memory, {roof.bandwidth / 1e9:.1f} GB/s",
            (across[100], slope[100]),
            xytext=(-6, 8),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(least, most)
    panel.set_ylim(top=1.6 * min(slope[-1], max(roof.peaks.values())))
    ticks = [one * 10.0**power for power in range(-2, 5) for one in (1, 2, 5)]
    shown = [tick for tick in ticks if least <= tick <= most]
    panel.set_xticks(shown, [f"{tick:g}" for tick in shown])
    panel.set_xticks([], minor=True)


def _draw_points(panel, points: Sequence[tuple[Figures, str, int, float, float]]) -> None:
    """Filled for the shorter prompt, hollow for the longer; a column is named once, below it."""
    prompts = sorted({point[2] for point in points})
    names = sorted({point[0].name for point in points}, key=list(_COLOURS).index)
    lowest = min(point[4] for point in points)
    panel.set_ylim(bottom=lowest / 2.4)
    for one, _, prompt, intensity, reached in points:
        colour = _COLOURS[one.name]
        # A column is spread to the right, so that equal figures are seen side by side; the roof
        # only rises that way.
        aside = names.index(one.name) * 0.02
        if one.dtype not in (one.kind, "q8_0", "q4_1"):
            panel.annotate(
                one.dtype,
                (intensity * 10**aside, reached),
                xytext=(-8, -3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=colour,
            )
        panel.plot(
            intensity * 10**aside,
            reached,
            marker=_MARKERS[one.kind],
            markersize=9 if one.name == "ours" else 7,
            markeredgecolor=colour,
            markerfacecolor=colour if prompt == prompts[0] else "white",
            markeredgewidth=1.6,
            linestyle="none",
            zorder=3 if one.name == "ours" else 2,
            alpha=1.0 if one.is_clean else 0.45,
        )
    columns = {(point[0].kind, point[2]): point[3] for point in points}
    rows = {prompt: 6 + 13 * index for index, prompt in enumerate(reversed(prompts))}
    for (kind, prompt), intensity in columns.items():
        panel.annotate(
            f"{kind}, {prompt}",
            (intensity, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, rows[prompt]),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color="#444444",
        )


def _legend(figures: Sequence[Figures]) -> list[object]:
    line = optional("matplotlib.lines").Line2D

    names = [name for name in _COLOURS if any(one.name == name for one in figures)]
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in figures)]
    prompts = sorted({prompt for one in figures for prompt in one.prefill_ms})
    plain = {"linestyle": "none", "markersize": 8, "markeredgewidth": 1.6}
    entries: list[object] = [
        line([], [], marker="o", color=_COLOURS[name], label=name, linestyle="none")
        for name in names
    ]
    entries += [
        line([], [], marker=_MARKERS[kind], color="#444444", label=f"{kind} weights", **plain)
        for kind in kinds
    ]
    entries += [
        line(
            [],
            [],
            marker="o",
            color="#444444",
            markerfacecolor="#444444" if prompt == prompts[0] else "white",
            label=f"{prompt} tokens",
            **plain,
        )
        for prompt in prompts
    ]
    if not all(one.is_clean for one in figures):
        faint = line([], [], marker="o", color="#444444", alpha=0.45, label="under load", **plain)
        entries.append(faint)
    return entries
