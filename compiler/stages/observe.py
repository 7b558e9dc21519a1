"""Two runners, tap by tap: what they differ by, and what each part is off by itself.

The reference runs once and its taps are kept. The candidate runs twice: on its own, which gives the
accumulated error; and with the reference's value put in the place of each tap once it was
measured, so that every part computes from the reference's values, which gives the local error. The
first tap with a local error is where a fault lies; behind it, the accumulated error only travels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.comparing.measures import compare_tensors
from compiler.comparing.tap_watchers import (
    LOGITS,
    Holder,
    Measured,
    Recomputer,
    Recorder,
    Watcher,
)
from compiler.contracts.comparison import Finding, TapComparison, TensorStatus
from compiler.contracts.errors import TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import FIRST_TAPS, LAST_TAPS, LAYER_RESULTS, Observer, Tap, taps_of
from compiler.tap_store import TapFolder, TapSource

ALL_POINTS = Observer.points
# At level `layer`: what a layer leaves behind, and both ends.
LAYER_POINTS = frozenset((*FIRST_TAPS, *LAYER_RESULTS, *LAST_TAPS))
# What is put in place of the candidate's own value there: a layer's input, and the head's.
_LAYER_FORCED = frozenset((*FIRST_TAPS, "resid2", "norm"))

# Takes the logits after a call, by its name.
TakeLogits = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Call:
    """One call of a runner.

    Attributes:
        name: `prompt0/prefill0` (the first window) or `prompt0/step1` (the first decode step).
        tokens: What it appends.
        past: Positions that are filled before.
    """

    name: str
    tokens: tuple[int, ...]
    past: int


def calls_of(prompts: Sequence[tuple[Sequence[int], Sequence[int]]], *, window: int) -> list[Call]:
    """Calls that read each prompt window by window, then feed each of its continuation's tokens.

    Args:
        prompts: Per prompt its tokens, and those that are fed after it.
        window: Tokens of a prefill call.
    """
    calls: list[Call] = []
    for index, (prompt, fed) in enumerate(prompts):
        for number, start in enumerate(range(0, len(prompt), window)):
            part = tuple(prompt[start : start + window])
            calls.append(Call(f"prompt{index}/prefill{number}", part, start))
        for step, token in enumerate(fed, start=1):
            calls.append(Call(f"prompt{index}/step{step}", (token,), len(prompt) + step - 1))
    return calls


def record(
    runner: Runner, calls: Iterable[Call], store: TapFolder, *, points: frozenset[str]
) -> None:
    """Run the calls and keep the taps."""
    _watch(runner, calls, Recorder(store, points))


def _watch(
    runner: Runner, calls: Iterable[Call], watcher: Watcher, take: TakeLogits | None = None
) -> None:
    runner.observe(watcher)
    try:
        for call in calls:
            runner.rewind(call.past)
            watcher.begin(call.name)
            logits = runner.extend(call.tokens)
            watcher.end()
            if take is not None:
                take(call.name, logits)
    finally:
        runner.observe(None)


@dataclass(frozen=True)
class Observed:
    """A candidate's run by tap.

    Attributes:
        taps: In the order of computation.
        missing: Taps that nobody could show.
        findings: That watching changed the logits.
        refusal: Why there are no local errors; empty where there are.
    """

    taps: tuple[TapComparison, ...]
    missing: tuple[Tap, ...]
    findings: tuple[Finding, ...]
    refusal: str = ""


def hold_against(
    reference: TapSource,
    runner: Runner,
    calls: Sequence[Call],
    *,
    level_points: frozenset[str],
    max_local: float,
    max_rel: float,
    scratch: TapFolder,
    open_recompute: Callable[[], Runner] | None = None,
) -> Observed:
    """Measure a candidate's taps against those of the reference.

    Args:
        reference: The reference's taps for the same calls.
        runner: The candidate.
        calls: What both run.
        level_points: `ALL_POINTS` or `LAYER_POINTS`.
        max_local: Largest local error over the reference tap's largest magnitude that passes.
        max_rel: Largest accumulated error likewise, for a candidate whose values cannot be
            replaced.
        scratch: Empty; holds the candidate's own taps while what it does not hold is recomputed.
        open_recompute: Opens the candidate's program where all taps can be seen, for those that
            the candidate swallowed.

    Raises:
        TargetError: The candidate shows no taps.
    """
    _run_unwatched(runner, calls, scratch)
    own = Holder(reference, level_points, kept=None if open_recompute is None else scratch)
    changed = _Changes(scratch)
    _watch(runner, calls, own, changed.take)
    alone = Holder(reference, level_points, forced=_forced(level_points))
    refusal = ""
    try:
        _watch(runner, calls, alone)
    except TargetError as e:
        refusal = e.message
    wanted = _kept(reference, calls, taps_of(runner.layers, level_points))
    if open_recompute is not None and _is_any_swallowed(reference, calls, wanted, own):
        _recompute(open_recompute(), calls, reference, scratch, own, None if refusal else alone)
    local: Mapping[Tap, Measured] = {} if refusal else alone.worst
    limit = max_rel if refusal else max_local
    taps = tuple(
        _comparison(tap, own.worst[tap], local.get(tap), max_error=limit)
        for tap in wanted
        if tap in own.worst
    )
    missing = tuple(tap for tap in wanted if tap not in own.worst)
    return Observed(taps, missing, changed.findings, refusal)


def _forced(level_points: frozenset[str]) -> frozenset[str]:
    return level_points if level_points == ALL_POINTS else _LAYER_FORCED


def _run_unwatched(runner: Runner, calls: Sequence[Call], scratch: TapFolder) -> None:
    for call in calls:
        runner.rewind(call.past)
        scratch.put(_unwatched(call.name), LOGITS, runner.extend(call.tokens)[None])


def _unwatched(call: str) -> str:
    return f"unwatched/{call}"


class _Changes:
    """Whether the logits are others once taps are read: then what was seen is not what runs."""

    def __init__(self, scratch: TapFolder) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._scratch = scratch

    def take(self, call: str, logits: np.ndarray) -> None:
        """The logits of a call that was watched; the first that changed is a finding."""
        before = self._scratch.get(_unwatched(call), LOGITS)
        assert before is not None, f"{call} ran unwatched"
        if self.findings or before[0].tobytes() == logits.tobytes():
            return
        status, measures = compare_tensors(before[0], logits)
        by = f"by {measures.max_abs:.2g} at most" if status is None else f"to {status}"
        said = f"reading taps changes the logits of {call}, {by}"
        hint = "believe none of its taps: they are not of what runs; report this as a bug"
        self.findings = (Finding("observation", call, said, hint),)


def _kept(reference: TapSource, calls: Sequence[Call], taps: Iterable[Tap]) -> list[Tap]:
    return [tap for tap in taps if any(reference.get(call.name, tap) is not None for call in calls)]


def _is_any_swallowed(
    reference: TapSource, calls: Sequence[Call], wanted: Sequence[Tap], own: Holder
) -> bool:
    """Whether the candidate did not show a tap in a call in which the reference did."""
    return any(
        (call.name, tap) not in own.seen and reference.get(call.name, tap) is not None
        for call in calls
        for tap in wanted
    )


def _recompute(
    runner: Runner,
    calls: Sequence[Call],
    reference: TapSource,
    scratch: TapSource,
    own: Holder,
    alone: Holder | None,
) -> None:
    """Measure swallowed taps on the target's own values, and on the reference's."""
    forced = _forced(own.points)
    ways = (
        (own, scratch, ALL_POINTS, frozenset[str]()),
        (alone, reference, forced, forced),
    )
    try:
        for holder, held, put, then in ways:
            if holder is None:
                continue
            again = Recomputer(
                reference, own.points, forced=then, shown=own.seen, held=held, put=put
            )
            _watch(runner, calls, again)
            for tap, found in again.worst.items():
                holder.keep(tap, found)
    finally:
        runner.close()


def compare_saved(
    reference: TapSource,
    candidate: TapSource,
    calls: Sequence[Call],
    *,
    layers: int,
    level_points: frozenset[str],
    max_error: float,
) -> tuple[TapComparison, ...]:
    """Taps of a file against the reference's: accumulated errors alone, nothing can be run again.

    Args:
        reference: The reference's taps.
        candidate: The file's.
        calls: What both ran.
        layers: Decoder layers.
        level_points: `ALL_POINTS` or `LAYER_POINTS`.
        max_error: Largest accumulated error over the reference tap's largest magnitude that passes.
    """
    holder = Holder(reference, level_points)
    taps = taps_of(layers, level_points)
    for call in calls:
        holder.begin(call.name)
        for tap in taps:
            rows = candidate.get(call.name, tap)
            if rows is not None:
                holder.see(tap, rows)
        holder.end()
    return tuple(
        _comparison(tap, holder.worst[tap], None, max_error=max_error)
        for tap in taps
        if tap in holder.worst
    )


def _comparison(
    tap: Tap, accumulated: Measured, local: Measured | None, *, max_error: float
) -> TapComparison:
    decisive = accumulated if local is None else local
    status: TensorStatus = decisive.status or (
        "pass" if decisive.measures.max_rel <= max_error else "fail"
    )
    return TapComparison(
        layer=tap.layer,
        point=tap.point,
        status=status,
        call=decisive.call,
        accumulated=accumulated.measures,
        local=None if local is None else local.measures,
        is_recomputed=decisive.is_recomputed,
    )
