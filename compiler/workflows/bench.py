"""bundle -> its figures: prefill, decode, memory, and how far from the memory's floor they are.

The process is as lean as the one that `run` uses. Figures are medians of blocks that were measured
while others left the machine alone; those that could not be are marked.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compiler.contracts.bundle import Manifest
from compiler.contracts.errors import ConfigError, RunError
from compiler.contracts.profile import CallProfile, KernelTime
from compiler.contracts.program import Phase
from compiler.contracts.progress import Progress
from compiler.contracts.runner import Runner
from compiler.measuring import (
    Blocks,
    Wanted,
    clean_blocks,
    peak_resident_bytes,
    read_bandwidth,
    repeated,
)
from compiler.ranks.world import current_world
from compiler.stages.open_bundle import open_bundle
from compiler.workflows.bytes_read import BytesRead, bytes_read
from compiler.workflows.run import open_session

_USUAL_PROMPT = 128


@dataclass(frozen=True)
class BenchRequest:
    """What is to be measured.

    Attributes:
        prompt_tokens: Lengths of prompts; empty for 128 and, where it is longer, the window.
        threads: To compute with, and to read memory with; None for the machine's.
        has_profile: Whether kernels are timed, too.
        wanted: How long, and how often.
    """

    prompt_tokens: tuple[int, ...] = ()
    threads: int | None = None
    has_profile: bool = False
    wanted: Wanted = field(default_factory=Wanted)


@dataclass(frozen=True)
class Figure:
    """A median.

    Attributes:
        ms: Milliseconds.
        others: The highest load of other processes in a block that is counted, in cores.
        is_clean: Whether all of them were measured while others left the machine alone.
        dropped: Blocks that were measured and are not counted.
    """

    ms: float
    others: float
    is_clean: bool
    dropped: int


@dataclass(frozen=True)
class LengthFigures:
    """A prompt's length.

    Attributes:
        prompt_tokens: How long.
        prefill: From an empty cache to the prompt's logits.
        decode: A token after that prompt; None where the bundle or its context has none.
        decode_tokens_per_second: The same, the other way round.
        bytes_per_token: Weights and cache that such a token reads.
        floor_ms: What reading them takes at `BenchResult.read_bandwidth`.
        over_floor: `decode` over it.
    """

    prompt_tokens: int
    prefill: Figure
    decode: Figure | None = None
    decode_tokens_per_second: float | None = None
    bytes_per_token: int | None = None
    floor_ms: float | None = None
    over_floor: float | None = None


@dataclass(frozen=True)
class KernelRow:
    """A kernel's calls on one shape, in one call of a graph, or in all windows of a prompt.

    Attributes:
        name: The kernel's.
        shape: Of its largest weight, or argument where it has none.
        calls: How many.
        ms: Together.
        share: Of `PhaseProfile.ms`.
        moved_bytes: What they must at least read and write.
        floor_ms: What that takes at `BenchResult.read_bandwidth`.
        over_floor: `ms` over it; None where nothing moves.
    """

    name: str
    shape: str
    calls: int
    ms: float
    share: float
    moved_bytes: int
    floor_ms: float
    over_floor: float | None


@dataclass(frozen=True)
class PhaseProfile:
    """Where the time goes.

    Attributes:
        phase: `prefill`, or `decode` of a token.
        prompt_tokens: Of the prompt, or of what lies before the token.
        ms: Of the call, unwatched; where the kernels take longer together, theirs.
        watched_ms: Of the call in which the kernels were timed.
        others: The load of other processes meanwhile.
        is_clean: Whether others left the machine alone.
        virtual_machine_ms: What of `ms` is no kernel.
        kernels: The slowest first.
    """

    phase: Phase
    prompt_tokens: int
    ms: float
    watched_ms: float
    others: float
    is_clean: bool
    virtual_machine_ms: float
    kernels: tuple[KernelRow, ...]


@dataclass(frozen=True)
class BenchResult:
    """All figures of one bundle.

    Attributes:
        bundle: Its digest.
        name: Its name.
        target: What built and ran it.
        threads: That computed and read.
        window: Tokens of a prefill call.
        context: Positions of the cache.
        peak_resident_bytes: Of the process that ran it, mapped weights included.
        read_bandwidth: Bytes a second that numpy read in as many threads, measured in this run.
        bandwidth_others: The load of other processes meanwhile.
        bandwidth_is_clean: Whether others left the machine alone.
        lengths: By prompt.
        profiles: Of the longest prompt, where they were asked for.
    """

    bundle: str
    name: str
    target: str
    threads: int
    window: int
    context: int
    peak_resident_bytes: int
    read_bandwidth: float
    bandwidth_others: float
    bandwidth_is_clean: bool
    lengths: tuple[LengthFigures, ...]
    profiles: tuple[PhaseProfile, ...]


@dataclass(frozen=True)
class _Timed:
    """Blocks of one length, in seconds; decode is None where there is none."""

    tokens: tuple[int, ...]
    prefill: Blocks[float]
    decode: Blocks[float] | None


def bench(
    path: Path, request: BenchRequest | None = None, *, progress: Progress | None = None
) -> BenchResult:
    """Measure a bundle.

    Args:
        path: The bundle's folder.
        request: What to measure.
        progress: Receives a note for each length.

    Raises:
        BundleError: It is no bundle, or damaged.
        ConfigError: A length is less than 1, or several processes were started.
        MachineLacks: This machine cannot run it.
        RunError: A prompt is longer than the context, or there are no threads to compute with.
        TargetError: Kernels are to be timed, and this bundle's runner cannot.
    """
    request, progress = request or BenchRequest(), progress or Progress()
    _refuse_ranks()
    bundle = open_bundle(path)
    manifest = bundle.manifest
    lengths = _lengths(manifest, request.prompt_tokens)
    threads = len(os.sched_getaffinity(0)) if request.threads is None else request.threads
    read = bytes_read(bundle)
    with open_session(path, threads=threads) as session:
        timed = []
        for length in lengths:
            progress.note(f"measuring a prompt of {length} tokens")
            timed.append(_time(session.runner, _prompt(manifest, length), read, request.wanted))
        peak = peak_resident_bytes()
        profiled: list[tuple[Phase, Blocks[CallProfile]]] = []
        if request.has_profile:
            progress.note("timing kernels")
            profiled = list(_profile(session.runner, timed[-1], request.wanted))
    speed = clean_blocks(read_bandwidth(threads), wanted=request.wanted)
    bandwidth = speed.median(float)
    return BenchResult(
        bundle=manifest.digest,
        name=manifest.name,
        target=manifest.target,
        threads=threads,
        window=manifest.window,
        context=manifest.context,
        peak_resident_bytes=peak,
        read_bandwidth=bandwidth,
        bandwidth_others=speed.others,
        bandwidth_is_clean=speed.is_clean,
        lengths=tuple(_figures(one, read, bandwidth) for one in timed),
        profiles=tuple(
            _phase_profile(phase, timed[-1], blocks, bandwidth) for phase, blocks in profiled
        ),
    )


def usual_lengths(window: int) -> tuple[int, ...]:
    """What is measured where no length is named: 128, and a whole window where that is longer."""
    shorter = min(_USUAL_PROMPT, window)
    return (shorter,) if window == shorter else (shorter, window)


def _refuse_ranks() -> None:
    world = current_world()
    if world is not None and world.size > 1:
        raise ConfigError(
            "a bundle is measured by one process",
            hint="start it without torchrun: its ranks are threads then",
            code="usage",
        )


def _lengths(manifest: Manifest, asked: Sequence[int]) -> tuple[int, ...]:
    """In rising order."""
    for length in asked:
        if length < 1:
            raise ConfigError(f"--prompt-tokens is {length}", hint="1 or more", code="usage")
        if length > manifest.context:
            raise RunError(
                f"a prompt of {length} tokens does not fit the context of {manifest.context}",
                where="--prompt-tokens",
                hint="name a shorter one",
                code="context-full",
            )
    return tuple(sorted(set(asked))) if asked else usual_lengths(manifest.window)


def _prompt(manifest: Manifest, length: int) -> tuple[int, ...]:
    drawn = np.random.default_rng(length).integers(0, manifest.vocabulary, length)
    return tuple(drawn.tolist())


def _time(
    runner: Runner, tokens: tuple[int, ...], read: BytesRead | None, wanted: Wanted
) -> _Timed:
    """Prefill from an empty cache; decode always after the same prompt."""

    def prefill() -> float:
        runner.rewind(0)
        return _seconds(lambda: runner.extend(tokens))

    def decode() -> float:
        seconds = _seconds(lambda: runner.extend(tokens[:1]))
        runner.rewind(len(tokens))
        return seconds

    prefill()  # the first call starts threads and touches weights
    filled = clean_blocks(repeated(prefill, seconds=wanted.seconds), wanted=wanted)
    if read is None or len(tokens) >= runner.context:
        return _Timed(tokens, filled, None)
    decode()
    return _Timed(
        tokens, filled, clean_blocks(repeated(decode, seconds=wanted.seconds), wanted=wanted)
    )


def _profile(
    runner: Runner, timed: _Timed, wanted: Wanted
) -> list[tuple[Phase, Blocks[CallProfile]]]:
    def prefill() -> CallProfile:
        runner.rewind(0)
        return runner.profile(timed.tokens)

    def decode() -> CallProfile:
        profile = runner.profile(timed.tokens[:1])
        runner.rewind(len(timed.tokens))
        return profile

    prefill()
    found: list[tuple[Phase, Blocks[CallProfile]]] = [
        ("prefill", clean_blocks(prefill, wanted=wanted))
    ]
    if timed.decode is not None:
        decode()
        found.append(("decode", clean_blocks(decode, wanted=wanted)))
    return found


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _figures(timed: _Timed, read: BytesRead | None, bandwidth: float) -> LengthFigures:
    length = len(timed.tokens)
    if timed.decode is None or read is None:
        return LengthFigures(length, _figure(timed.prefill))
    decode = _figure(timed.decode)
    count = read.at(length)
    floor = 1000 * count / bandwidth
    return LengthFigures(
        prompt_tokens=length,
        prefill=_figure(timed.prefill),
        decode=decode,
        decode_tokens_per_second=1000 / decode.ms,
        bytes_per_token=count,
        floor_ms=floor,
        over_floor=decode.ms / floor,
    )


def _figure(blocks: Blocks[float]) -> Figure:
    return Figure(1000 * blocks.median(float), blocks.others, blocks.is_clean, blocks.dropped)


def _phase_profile(
    phase: Phase, timed: _Timed, blocks: Blocks[CallProfile], bandwidth: float
) -> PhaseProfile:
    """The profiled call of median length, held against the plain one."""
    profile = blocks.typical(lambda one: one.seconds)
    plain = timed.prefill if phase == "prefill" else timed.decode
    assert plain is not None, "a phase that is profiled was timed"
    kernels = sum(row.seconds for row in profile.kernels)
    total = max(plain.median(float), kernels)
    return PhaseProfile(
        phase=phase,
        prompt_tokens=len(timed.tokens),
        ms=1000 * total,
        watched_ms=1000 * profile.seconds,
        others=blocks.others,
        is_clean=blocks.is_clean,
        virtual_machine_ms=1000 * (total - kernels),
        kernels=tuple(_kernel_row(row, total, bandwidth) for row in profile.kernels),
    )


def _kernel_row(row: KernelTime, total: float, bandwidth: float) -> KernelRow:
    floor = row.moved_bytes / bandwidth
    return KernelRow(
        name=row.name,
        shape=row.shape,
        calls=row.calls,
        ms=1000 * row.seconds,
        share=row.seconds / total,
        moved_bytes=row.moved_bytes,
        floor_ms=1000 * floor,
        over_floor=row.seconds / floor if floor else None,
    )
