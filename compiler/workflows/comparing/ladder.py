"""`compare --ladder`: which step of the way changes the logits, and in which layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from compiler.comparing.tap_faults import first_fault, largest_local, place_of
from compiler.config import BuildConfig, CompareLimits
from compiler.contracts.comparison import Ladder
from compiler.contracts.errors import RunError, TargetError
from compiler.contracts.runner import Runner
from compiler.contracts.taps import Tap
from compiler.pass_order import PlannedPass
from compiler.registry import load_target
from compiler.stages.compare import Trajectory, decode_forced
from compiler.stages.ladder import ladder_steps, largest_step
from compiler.stages.observe import ALL_POINTS, Call, Observed, hold_against, record
from compiler.tap_store import TapFolder
from compiler.workflows.comparing.targets import TargetChoice, TargetOpener

# What runs a program at any point of the pipeline.
_INTERPRETER = "onnxruntime"
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class _Rung:
    """A point of the way.

    Attributes:
        name: As the report shows it.
        choice: The target that runs it.
        passes: How many passes have run, where it is a program.
        is_lowered: Whether it is the programs as the target's compiler reads them.
    """

    name: str
    choice: TargetChoice
    passes: int | None = None
    is_lowered: bool = False


def climb(
    opener: TargetOpener,
    reference: TargetChoice,
    candidate: TargetChoice,
    *,
    trajectories: Sequence[Trajectory],
    calls: Sequence[Call],
    limits: CompareLimits,
    scratch: Path,
) -> Ladder:
    """Run every rung on the same tokens, and look into the largest step by tap.

    Args:
        opener: Of the model.
        reference: The foot of the ladder.
        candidate: Its top; see `check_top`.
        trajectories: What every rung is fed.
        calls: What is run by tap in the largest step.
        limits: What a tap may be off by.
        scratch: A folder for logits and taps.
    """
    rungs: list[_Rung] = []
    files: list[Path] = []
    for rung in (_Rung(str(reference), reference), *_rungs(opener, candidate)):
        runner = _open(opener, rung)
        if runner is None:
            continue
        rungs.append(rung)
        files.append(_logits(runner, trajectories, scratch / f"rung{len(files)}.npy"))
    reads = [partial(np.load, file, mmap_mode="r") for file in files]
    names = [rung.name for rung in rungs]
    steps = ladder_steps(reads[0], list(zip(names[1:], reads[1:], strict=True)))
    at = largest_step(steps)
    above = rungs[at + 1]
    observed = _taps(opener, rungs[at], above, calls, limits=limits, scratch=scratch)
    place, said = _said(observed)
    return Ladder(
        reference=str(reference),
        steps=tuple(steps),
        largest=above.name,
        layer=place.layer,
        point=place.point,
        said=f"{above.name} changes the logits most (by {steps[at].max_abs:.2g} at most); {said}",
    )


def check_top(config: BuildConfig, candidate: TargetChoice) -> None:
    """Refuse what no programs lead to.

    Raises:
        RunError: It reads the checkpoint by itself, or is another target than the YAML's.
    """
    opens = load_target(candidate.name).opens
    if opens == "checkpoint":
        raise RunError(
            f"no ladder leads to {candidate}: it reads the checkpoint by itself",
            hint="write --targets torch,tvm_llvm --ladder",
        )
    if opens == "bundle" and candidate.name != config.backend.type:
        raise RunError(
            f"a ladder leads to the YAML's target, {config.backend.type}, and not to {candidate}",
            where=config.place("backend.type"),
            hint=f"write --set backend.type={candidate.name}",
        )


def _rungs(opener: TargetOpener, candidate: TargetChoice) -> list[_Rung]:
    """The trace, the programs after each group of passes, and what becomes of the last."""
    if load_target(candidate.name).opens == "program":
        return _program_rungs(opener, len(opener.passes_until(candidate.variant)))
    return [
        *_program_rungs(opener, len(opener.passes())),
        _Rung("lowering", candidate, is_lowered=True),
        _Rung(f"target: {candidate}", candidate),
    ]


def _program_rungs(opener: TargetOpener, count: int) -> list[_Rung]:
    """The trace, and the programs after each group of the first passes that do the same kind."""
    choice = TargetChoice(_INTERPRETER)
    rungs = [_Rung("trace", choice, 0)]
    group, members = "", list[str]()
    target = load_target(opener.config.backend.type)()
    added = {one.name for one in target.passes(opener.config.target_options())}
    for number, (planned, dtypes) in enumerate(islice(opener.walked(), count), start=1):
        kind = _kind(planned, dtypes, added)
        if kind != group:
            members = []
            rungs.append(_Rung("", choice, number))
        group, name = kind, planned.rewrite.name
        members.append(name)
        shown = f"{members[0]} to {name}" if len(members) > 1 else name
        rungs[-1] = _Rung(f"{kind}: {shown}", choice, number)
    return rungs


def _kind(planned: PlannedPass, dtypes: tuple[set[str], set[str]], added: set[str]) -> str:
    """What a pass does to numbers, by what the weights were and are; else who asked for it."""
    before, after = dtypes
    if "int8" in after - before:
        return "quantization"
    if planned.rewrite.promise().kind == "rounds" or (after - before) & set(_HALF):
        return "dtype cast"
    is_targets = planned.rewrite.name in added or planned.stands_for in added
    return "target's passes" if is_targets else "passes"


def _open(opener: TargetOpener, rung: _Rung) -> Runner | None:
    """A runner of it; None where the target has no such point."""
    if rung.is_lowered:
        try:
            return opener.open_lowered(rung.choice)
        except TargetError as e:
            opener.progress.note(f"there is no step 'lowering': {e.message}")
            return None
    if rung.passes is None:
        return opener.open(rung.choice)
    return _open_program(opener, rung.passes)


def _open_program(opener: TargetOpener, passes: int) -> Runner:
    return opener.open_program(TargetChoice(_INTERPRETER), opener.passes()[:passes])


def _logits(runner: Runner, trajectories: Sequence[Trajectory], file: Path) -> Path:
    try:
        rows = [row for one in trajectories for row in decode_forced(runner, one)]
    finally:
        runner.close()
    np.save(file, np.stack(rows))
    return file


def _taps(
    opener: TargetOpener,
    below: _Rung,
    above: _Rung,
    calls: Sequence[Call],
    *,
    limits: CompareLimits,
    scratch: Path,
) -> Observed:
    """The upper rung's taps against the lower's."""
    stores = [TapFolder(scratch / name) for name in ("below", "above")]
    runner = _known(opener, below)
    try:
        record(runner, calls, stores[0], points=ALL_POINTS)
    finally:
        runner.close()
    # What a target swallowed, the program that it was lowered from shows.
    whole = partial(_open_program, opener, len(opener.passes()))
    runner = _known(opener, above)
    try:
        return hold_against(
            stores[0],
            runner,
            calls,
            level_points=ALL_POINTS,
            max_local=limits.max_local,
            max_rel=limits.max_rel,
            scratch=stores[1],
            open_recompute=whole if above.passes is None else None,
        )
    finally:
        runner.close()


def _known(opener: TargetOpener, rung: _Rung) -> Runner:
    """A runner of a rung that ran before."""
    runner = _open(opener, rung)
    assert runner is not None, f"{rung.name} ran"
    return runner


def _said(observed: Observed) -> tuple[Tap, str]:
    """The tap at fault, or the one that is off most, and a sentence on it."""
    fault = first_fault(observed.taps)
    if fault is not None:
        return Tap(fault.layer, fault.point), fault.said
    largest = largest_local(observed.taps)
    if largest is None or largest.local is None:
        return Tap(None, ""), observed.refusal or "it shows no taps"
    place = place_of(largest)
    return place, f"no tap is wrong by itself; {place} is off most, by {largest.local.max_rel:.2g}"
