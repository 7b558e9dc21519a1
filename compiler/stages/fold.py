"""Decode of one prompt -> decode of several, by a pass; prefill reads one prompt at a time.

The pass is run after the last one, on a copy of the decode program. Its graph is checked as after
any pass, invariants included, and the probe's, on prompts that differ, must give each of them what
it gets alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.contracts.errors import CompilerError, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport, Skip
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.numerics.folded_run import folded_error
from compiler.numerics.isomorphism import difference
from compiler.numerics.probe import ProbeModel
from compiler.pass_checks import report_problem, state_of, structure_problem


@dataclass(frozen=True)
class Folded:
    """Both programs, decode's folded, and what the pass did to it."""

    programs: ProgramSet
    record: PassRecord


def fold(
    programs: ProgramSet,
    folding: Pass,
    *,
    batch: int,
    place: str = "",
    invariants: Mapping[Phase, Sequence[Invariant]],
    is_verified: bool = True,
    probe: ProbeModel | None = None,
) -> Folded:
    """Let decode take a token of each of `batch` prompts.

    Args:
        programs: After the last pass; left as they are.
        folding: The pass, of `batch` prompts.
        batch: How many.
        place: Who asked for it, for errors.
        invariants: What must hold of the graph.
        is_verified: Without it nothing is checked but that the pass fired (`verify: off`).
        probe: The probe after the last pass, which is folded beside the model; None measures none.

    Raises:
        PassError: The pass declined the graph, or left one that is not sound.
        CheckFailed: A prompt does not get what it gets alone.
    """
    single = programs.programs["decode"]
    error: float | None = None
    try:
        program, report = _folded(folding, single)
        if is_verified:
            _check(single, program, report, invariants.get("decode", ()))
        if probe is not None:
            error = _measured(probe, program, folding, batch=batch)
    except CompilerError as problem:
        message = f"pass '{folding.name}' on decode: {problem.message}"
        hint, code = problem.hint, problem.code
        raise type(problem)(message, where=place, hint=hint, code=code) from problem
    record = PassRecord(folding.name, "decode", len(report.rewrites), report.skips, error)
    return Folded(ProgramSet({**programs.programs, "decode": program}), record)


def _folded(folding: Pass, single: Program) -> tuple[Program, PassReport]:
    program = single.copy()
    report = folding.run(program)
    program.prune_parameters()
    if not report.rewrites:
        reason = report.skips[0] if report.skips else Skip("graph", "nothing was found to fold")
        raise PassError(
            f"declines {reason.node}: {reason.reason}",
            hint="build for one prompt (batch: 1), or leave out the pass that made it so",
            code="not-folded",
        )
    return program, report


def _check(
    single: Program, program: Program, report: PassReport, invariants: Sequence[Invariant]
) -> None:
    """What is checked after any pass, and that no weight is there twice."""
    model = program.model()
    problem = structure_problem(program, model)
    said = None if problem is None else f"left an invalid graph: {problem[1]}"
    said = said or report_problem(report, state_of(single), state_of(program, model))
    if program.weights != single.weights:
        said = said or "changed the weights"
    for invariant in invariants:
        broken = "; ".join(invariant.violations(program))
        said = said or (f"broke '{invariant.name}': {broken}" if broken else None)
    if said is not None:
        raise PassError(said, hint="the pass is at fault: report it to its author")


def _measured(probe: ProbeModel, program: Program, folding: Pass, *, batch: int) -> float:
    """Fold the probe in the same way, and run it."""
    single = probe.programs.programs["decode"]
    folded, _ = _folded(folding, single)
    unlike = difference(program, folded)
    if unlike is not None:
        raise PassError(
            f"did not do the same to the probe: {unlike}",
            code="probe-differs",
            hint="a pass must not decide by sizes",
        )
    return folded_error(single, folded, probe.read, batch=batch, vocabulary=probe.vocabulary)
