"""ProgramSet -> ProgramSet, pass by pass, each checked.

The order is checked before anything runs. After each pass and phase: the skeleton is valid ONNX,
names are unique, the graph is acyclic, the signature changed only where the pass declares it, the
report agrees with what changed, the expected number of places was rewritten, and every invariant
registered so far still holds. Where there is a probe, the pass did the same to it, and the probe's
numbers keep the pass's contract.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.contracts.errors import CheckFailed, CompilerError, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport
from compiler.contracts.program import PHASES, Phase, Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.numerics.isomorphism import difference
from compiler.numerics.measured_pass import Measured, MeasuredPhase
from compiler.numerics.probe import ProbeModel
from compiler.pass_checks import (
    ProgramState,
    broken_invariant,
    invalid_graph,
    report_problem,
    signature_problem,
    state_of,
    structure_problem,
)
from compiler.pass_order import PlannedPass, check_order

_AT_FAULT = "the pass is at fault: report it to its author"


@dataclass(frozen=True)
class Rewritten:
    """What the passes left.

    Attributes:
        programs: After the last pass.
        records: What each did.
        snapshots: By relative path.
        invariants: What holds of each phase, and must go on to.
    """

    programs: ProgramSet
    records: tuple[PassRecord, ...]
    snapshots: Mapping[str, bytes]
    invariants: Mapping[Phase, Sequence[Invariant]]


@dataclass
class _PhaseState:
    """What the driver remembers of one phase between passes.

    Attributes:
        program: The real program.
        state: What it was after the latest pass.
        invariants: Those registered so far.
        probe: The program that is measured; the real one itself with `verify: model`.
        numbers: Its numbers.
        measured: What they said after the latest pass.
    """

    program: Program
    state: ProgramState
    invariants: list[Invariant] = field(default_factory=list)
    probe: Program | None = None
    numbers: MeasuredPhase | None = None
    measured: Measured | None = None


def rewrite(
    programs: ProgramSet,
    passes: Sequence[PlannedPass],
    *,
    is_verified: bool = True,
    probe: ProbeModel | None = None,
    progress: Progress | None = None,
) -> Rewritten:
    """Run the passes in order on each of their phases, checking after each.

    Args:
        programs: The traced programs; rewritten in place.
        passes: In order, the target's last.
        is_verified: Without it only order and expected counts are checked (`verify: off`).
        probe: What numbers are measured on; None measures none. Its programs may be `programs`.
        progress: Told of each finished pass.

    Raises:
        PassError: A pass broke the structure, its declaration or an invariant; names pass and node.
        CheckFailed: A pass left its numeric contract, or fired more or less often than expected.
    """
    check_order(passes)
    states: dict[Phase, _PhaseState] = {
        phase: _entered(program, probe) for phase, program in programs.programs.items()
    }
    snapshots = {
        snapshot_name(phase, 0, "trace"): state.state.model for phase, state in states.items()
    }
    records: list[PassRecord] = []
    for number, planned in enumerate(passes, start=1):
        name = planned.rewrite.name
        for phase in (phase for phase in PHASES if phase in states):
            if phase not in planned.rewrite.phases:
                continue
            state = states[phase]
            records.append(_run(planned, state, is_verified=is_verified))
            snapshots[snapshot_name(phase, number, name)] = state.state.model
        if progress is not None:
            progress.update(number, len(passes), "passes")
    invariants: dict[Phase, Sequence[Invariant]] = {
        phase: tuple(state.invariants) for phase, state in states.items()
    }
    return Rewritten(programs, tuple(records), snapshots, invariants)


def snapshot_name(phase: Phase, number: int, name: str) -> str:
    """`prefill/03-fold-mask.onnx`, relative to the bundle's `ir`."""
    return Path(phase, f"{number:02d}-{name}.onnx").as_posix()


def _entered(program: Program, probe: ProbeModel | None) -> _PhaseState:
    model = program.model()
    kind, problem = structure_problem(program, model) or ("", "")
    assert not kind, f"the traced {program.phase} graph is invalid: {problem}"
    state = _PhaseState(program, state_of(program, model))
    if probe is not None:
        state.probe = probe.programs.programs[program.phase]
        state.numbers = MeasuredPhase(
            state.probe,
            probe.read,
            vocabulary=probe.vocabulary,
            has_float64=state.probe is not program,
        )
        state.measured = state.numbers.at_start
        unlike = difference(program, state.probe)
        assert unlike is None, f"the {program.phase} graph differs from its probe: {unlike}"
    return state


def _run(planned: PlannedPass, state: _PhaseState, *, is_verified: bool) -> PassRecord:
    rewriting, program, before = planned.rewrite, state.program, state.state
    state.invariants += rewriting.invariants(program)
    report = rewriting.run(program)
    program.prune_parameters()
    model = program.model()
    after = state.state = state_of(program, model)
    if is_verified:
        problem = (
            invalid_graph(program, model)
            or signature_problem(rewriting, before, after)
            or report_problem(report, before, after)
            or broken_invariant(program, state.invariants)
        )
        if problem is not None:
            raise PassError(
                f"{_said(planned, program)}: {problem}", where=planned.place, hint=_AT_FAULT
            )
    _check_expected(planned, report, program)
    measured = _measure(planned, state, report, is_changed=before != after)
    return PassRecord(
        rewriting.name,
        program.phase,
        len(report.rewrites),
        report.skips,
        error=None if measured is None else measured.error,
        float64_error=None if measured is None else measured.float64_error,
    )


def _measure(
    planned: PlannedPass, state: _PhaseState, report: PassReport, *, is_changed: bool
) -> Measured | None:
    """Do the same to the probe, and hold its numbers to the contract."""
    if state.probe is None or state.numbers is None or state.measured is None:
        return None
    rewriting = planned.rewrite
    try:
        if state.probe is not state.program:
            rewriting = rewriting.on_probe(state.probe)
            _follow_on_probe(rewriting, state, report)
        if is_changed:
            state.measured = state.numbers.follow(rewriting, state.probe)
            return state.measured
    except CompilerError as error:
        where = ": ".join(part for part in (planned.place, error.where) if part)
        message = f"{_said(planned, state.program)}: {error.message}"
        hint = error.hint or _AT_FAULT
        raise type(error)(message, where=where, hint=hint, code=error.code) from error
    return Measured(0.0, state.measured.float64_error)


def _follow_on_probe(rewriting: Pass, state: _PhaseState, report: PassReport) -> None:
    """Run the pass on the probe; it must rewrite and decline the same nodes in the same way."""
    assert state.probe is not None, "only a phase with a probe is followed"
    probed = rewriting.run(state.probe)
    state.probe.prune_parameters()
    for what, ones, others in (
        ("rewrites", report.rewrites, probed.rewrites),
        ("declines", [s.node for s in report.skips], [s.node for s in probed.skips]),
    ):
        names = sorted({*ones} ^ {*others})
        if names:
            only = "the model" if names[0] in ones else "the probe"
            raise PassError(
                f"{what} {names[0]} in {only} alone, so that the probe's numbers say nothing of it",
                code="probe-differs",
                hint="a pass must not decide by sizes",
            )
    problem = difference(state.program, state.probe)
    if problem is not None:
        raise PassError(
            f"did not do the same to the probe: {problem}",
            code="probe-differs",
            hint="a pass must not decide by sizes",
        )


def _said(planned: PlannedPass, program: Program) -> str:
    return f"pass '{planned.rewrite.name}' on {program.phase}"


def _check_expected(planned: PlannedPass, report: PassReport, program: Program) -> None:
    expected = planned.expected
    problem = None if expected is None else expected.unmet(report, program.layers)
    if problem is not None:
        raise CheckFailed(
            f"{_said(planned, program)}: {problem}",
            where=planned.place,
            hint="mend what the pass declines, or change its count under `expect:`",
            code="pass-expectation",
        )
