"""Everything that a pass must keep, tried on one case.

run                 raises nothing but a CompilerError
structure           valid ONNX, every node with a name of its own
signature, report   changed only as declared; a report of rewrites exactly where the graph changed
numbers             the contract, on onnxruntime, for each of the case's lengths
invariants          those before it and its own
repeat, determinism a second run changes nothing; a run on an equal graph gives an equal graph
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from compiler.contracts.errors import CompilerError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassReport, Skip
from compiler.contracts.program import Program
from compiler.pass_checks import (
    ProgramState,
    report_problem,
    signature_problem,
    state_of,
    structure_problem,
)
from compiler.pass_kit.cases import Case
from compiler.pass_kit.findings import Finding, Found, raised
from compiler.pass_kit.numeric_check import check_numbers

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Outcome:
    """What came of one pass on one case.

    Attributes:
        rewrites: Names that it reports.
        skips: What it declined.
        has_invariants: Whether it registers any.
        refusal: The error with which it refused the graph.
        finding: What it did wrong.
    """

    rewrites: tuple[str, ...] = ()
    skips: tuple[Skip, ...] = ()
    has_invariants: bool = False
    refusal: str | None = None
    finding: Finding | None = None


def check_pass(
    rewriting: Pass, case: Case, *, has_numbers: bool = True, has_float64: bool = True
) -> Outcome:
    """Run a pass on a case and check all of it; the first thing that is wrong is the finding.

    Args:
        rewriting: The pass.
        case: What it is run on; left as it is.
        has_numbers: Whether the graphs are run.
        has_float64: Whether a difference is shown against float64, too.
    """
    program = case.copy()
    try:
        own = _guarded(rewriting.invariants, "invariants", program)
        report = _guarded(rewriting.run, "run", program)
    except Found as found:
        return Outcome(finding=found.finding)
    except CompilerError as error:
        return Outcome(refusal=error.message)
    try:
        _guarded(_exported, "export of the new graph", program)
        before = state_of(case.program)
        finding = _graph_finding(rewriting, before, program, report)
        if finding is None and has_numbers and state_of(program) != before:
            check_numbers(rewriting, case, program, has_float64=has_float64)
        finding = (
            finding
            or _invariants_finding((*case.invariants(), *own), program)
            or _repeat_finding(rewriting, case, program, report)
        )
    except Found as found:
        finding = found.finding
    return Outcome(report.rewrites, report.skips, bool(own), finding=finding)


def _exported(program: Program) -> None:
    program.prune_parameters()
    program.model()


def _guarded(call: Callable[[Program], _Result], name: str, program: Program) -> _Result:
    try:
        return call(program)
    except CompilerError:
        raise
    except Exception as error:  # a foreign pass: whatever it raises is the finding
        raise raised(name, error) from error


def _graph_finding(
    rewriting: Pass, before: ProgramState, program: Program, report: PassReport
) -> Finding | None:
    """What is wrong with the graph, its signature or the report of it."""
    model = program.model()
    kind, said = structure_problem(program, model) or ("", None)
    if said is not None:
        return Finding("structure", kind, said)
    after = state_of(program, model)
    said = signature_problem(rewriting, before, after)
    if said is not None:
        return Finding("signature", "changed", said)
    said = report_problem(report, before, after)
    return None if said is None else Finding("report", said.split("'")[0], said)


def _invariants_finding(invariants: Sequence[Invariant], program: Program) -> Finding | None:
    for invariant in invariants:
        broken = "; ".join(invariant.violations(program))
        if broken:
            return Finding("invariants", invariant.name, f"breaks '{invariant.name}': {broken}")
    return None


def _repeat_finding(
    rewriting: Pass, case: Case, program: Program, report: PassReport
) -> Finding | None:
    """The same again on an equal graph, and once more on its own result."""
    again = case.copy()
    try:
        same = _guarded(rewriting.run, "a run on an equal graph", again)
        again.prune_parameters()
        if (same, state_of(again)) != (report, state_of(program)):
            return Finding("determinism", "differs", "two runs on equal graphs differ")
        second = _guarded(rewriting.run, "a second run", again)
    except CompilerError as error:
        return Finding("repeat", "refused", f"a second run refuses its own result: {error.message}")
    again.prune_parameters()
    if second.rewrites:
        return Finding("repeat", "rewrites", f"a second run rewrites {second.rewrites[0]} again")
    if state_of(again) != state_of(program):
        return Finding("repeat", "changes", "a second run changes the graph without a report")
    return None
