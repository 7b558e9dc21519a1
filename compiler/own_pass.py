"""A pass that the build runs itself, behind those of the list: on a copy, then checked like any."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from compiler.contracts.errors import CompilerError, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassReport, Skip
from compiler.contracts.program import Phase, Program
from compiler.pass_checks import broken_invariant, invalid_graph, report_problem, state_of


def run_on_copy(
    rewriting: Pass, program: Program, *, hint: str, code: str
) -> tuple[Program, PassReport]:
    """The rewritten copy; the program stays as it is.

    Args:
        rewriting: The pass.
        program: Behind all others.
        hint: What to do where the pass declines.
        code: Of that error.

    Raises:
        PassError: The pass declined; it says which node, and why.
    """
    copied = program.copy()
    report = rewriting.run(copied)
    copied.prune_parameters()
    if not report.rewrites:
        reason = report.skips[0] if report.skips else Skip("graph", "nothing was found to rewrite")
        raise PassError(f"declines {reason.node}: {reason.reason}", hint=hint, code=code)
    return copied, report


def refuse_unsound(
    before: Program, after: Program, report: PassReport, invariants: Iterable[Invariant]
) -> None:
    """Hold what the pass left to what holds behind every pass.

    Raises:
        PassError: The graph is invalid, the report is wrong, or an invariant is broken.
    """
    model = after.model()
    said = (
        invalid_graph(after, model)
        or report_problem(report, state_of(before), state_of(after, model))
        or broken_invariant(after, invariants)
    )
    if said is not None:
        raise at_fault(said)


def at_fault(said: str) -> PassError:
    """The error for what a pass must not do."""
    return PassError(said, hint="the pass is at fault: report it to its author")


@contextmanager
def saying(rewriting: Pass, phase: Phase, *, place: str) -> Iterator[None]:
    """Errors inside name the pass and the phase, and who asked for it.

    Raises:
        CompilerError: What was raised inside, of its kind.
    """
    try:
        yield
    except CompilerError as problem:
        message = f"pass '{rewriting.name}' on {phase}: {problem.message}"
        hint, code = problem.hint, problem.code
        raise type(problem)(message, where=place, hint=hint, code=code) from problem
