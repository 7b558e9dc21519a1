"""Measured series -> figures, floors, and ratios to the best peer of the same class. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measuring import Series
from benchmarks.models import Shape
from benchmarks.roof import Roof

OURS = "ours"
KINDS = ("fp32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Figures:
    """A contender in one dtype.

    Attributes:
        name: The contender's.
        dtype: Its spelling.
        kind: The class of weights in which it is compared.
        prefill_ms: By prompt.
        tokens_per_second: By prompt: at that context.
        peak_bytes: Resident, at most.
        others: The highest load of others in a block that counts, in cores.
        is_clean: Whether every block that counts is clean.
        first: By prompt: the most probable next token.
        problem: Why figures are missing; empty where none is.
    """

    name: str
    dtype: str
    kind: str
    prefill_ms: Mapping[int, float]
    tokens_per_second: Mapping[int, float]
    peak_bytes: int
    others: float
    is_clean: bool
    first: Mapping[int, int]
    problem: str = ""


@dataclass(frozen=True)
class Ratios:
    """One of ours against the best peer of its class in each column; above 1 ours is better.

    Attributes:
        dtype: Ours.
        kind: The class.
        prefill: By prompt.
        decode: By prompt.
        memory: The least peer's peak over ours.
    """

    dtype: str
    kind: str
    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    memory: float


def figures_of(series: Series, kind: str, *, rounds: int) -> Figures:
    """Medians of the blocks that count."""
    prefill, decode = (
        {
            prompt: blocks
            for prompt in series.prefill
            if (blocks := series.counted(what, prompt, rounds)) is not None
        }
        for what in ("prefill", "decode")
    )
    every = [*prefill.values(), *decode.values()]
    return Figures(
        name=series.name,
        dtype=series.dtype,
        kind=kind,
        prefill_ms={prompt: 1000 * one.median(float) for prompt, one in prefill.items()},
        tokens_per_second={prompt: 1 / one.median(float) for prompt, one in decode.items()},
        peak_bytes=series.peak,
        others=max((one.others for one in every), default=0.0),
        is_clean=all(one.is_clean for one in every),
        first=dict(series.first),
        problem=series.problem,
    )


def floor_of(shape: Shape, roof: Roof, kind: str, prompts: Sequence[int]) -> Figures:
    """What the measured roof leaves as the least time."""
    prefill = {
        prompt: roof.seconds(
            kind,
            operations=shape.prefill_operations(prompt),
            moved=shape.read_bytes(kind, prompt),
        )
        for prompt in prompts
    }
    decode = {
        prompt: roof.seconds(
            kind,
            operations=shape.decode_operations(prompt),
            moved=shape.read_bytes(kind, prompt + 1),
        )
        for prompt in prompts
    }
    return Figures(
        name="floor",
        dtype=kind,
        kind=kind,
        prefill_ms={prompt: 1000 * seconds for prompt, seconds in prefill.items()},
        tokens_per_second={prompt: 1 / seconds for prompt, seconds in decode.items()},
        peak_bytes=0,
        others=0.0,
        is_clean=True,
        first={},
    )


def ratios_of(figures: Sequence[Figures]) -> list[Ratios]:
    """One for each of ours that has a peer in its class."""
    found: list[Ratios] = []
    for ours in (one for one in figures if one.name == OURS and not one.problem):
        peers = [
            one for one in figures if one.name != OURS and one.kind == ours.kind and not one.problem
        ]
        if peers:
            found.append(_against(ours, peers))
    return found


def _against(ours: Figures, peers: Sequence[Figures]) -> Ratios:
    return Ratios(
        dtype=ours.dtype,
        kind=ours.kind,
        prefill={
            prompt: min(one.prefill_ms[prompt] for one in peers) / ms
            for prompt, ms in ours.prefill_ms.items()
        },
        decode={
            prompt: speed / max(one.tokens_per_second[prompt] for one in peers)
            for prompt, speed in ours.tokens_per_second.items()
        },
        memory=min(one.peak_bytes for one in peers) / ours.peak_bytes,
    )


def rows_of(
    figures: Sequence[Figures], floor: Figures | None, prompts: Sequence[int]
) -> list[list[str]]:
    """Of one class: contenders, the floor, and ours against the best of the others."""
    rows = [_row(one, prompts) for one in figures]
    if floor is not None:
        rows.append(_row(floor, prompts))
    for ratios in ratios_of(figures):
        numbers = [
            *_cells(ratios.prefill, prompts, "{:.2f}x"),
            *_cells(ratios.decode, prompts, "{:.2f}x"),
        ]
        name = f"ours {ratios.dtype} against the best peer"
        rows.append([name, "", *numbers, f"{ratios.memory:.2f}x", ""])
    return rows


def headers_of(prompts: Sequence[int]) -> list[str]:
    """Of `rows_of`."""
    return [
        "contender",
        "dtype",
        *(f"prefill {prompt} ms" for prompt in prompts),
        *(f"tokens/s at {prompt}" for prompt in prompts),
        "peak MB",
        "load of others",
    ]


def disagreements(figures: Sequence[Figures]) -> list[str]:
    """Float contenders that put another token first than torch does: another model, or a tie."""
    truth = next((one for one in figures if (one.name, one.dtype) == ("torch", "fp32")), None)
    if truth is None:
        return []
    return [
        f"{one.name} {one.dtype} puts token {token} first after {prompt} tokens, torch "
        f"{truth.first[prompt]}"
        for one in figures
        if one.kind == "fp32"
        for prompt, token in one.first.items()
        if token != truth.first.get(prompt)
    ]


def _row(one: Figures, prompts: Sequence[int]) -> list[str]:
    if one.problem and not one.prefill_ms:
        return [one.name, one.dtype, one.problem, *("" for _ in range(2 * len(prompts) + 1))]
    load = f"{one.others:.2f}" + ("" if one.is_clean else ", under load")
    return [
        one.name,
        one.dtype,
        *_cells(one.prefill_ms, prompts, "{:.4g}"),
        *_cells(one.tokens_per_second, prompts, "{:.1f}"),
        f"{one.peak_bytes / 1e6:.0f}" if one.peak_bytes else "",
        "" if one.name == "floor" else load,
    ]


def _cells(values: Mapping[int, float], prompts: Sequence[int], shown: str) -> list[str]:
    form: Callable[[float], str] = shown.format
    return [form(values[prompt]) if prompt in values else "-" for prompt in prompts]
