"""Decode of one prompt -> decode of several, by a pass; prefill reads one prompt at a time.

The pass is run after the last one, on a copy of the decode program. Its graph is checked as after
any pass, invariants included, and the probe's, on prompts that differ, must give each of them what
it gets alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compiler.contracts.errors import PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.numerics.folded_run import folded_error
from compiler.numerics.isomorphism import difference
from compiler.numerics.probe import ProbeModel
from compiler.own_pass import at_fault, refuse_unsound, run_on_copy, saying


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
    with saying(folding, "decode", place=place):
        program, report = _folded(folding, single)
        if is_verified:
            refuse_unsound(single, program, report, invariants.get("decode", ()))
            if program.weights != single.weights:
                raise at_fault("changed the weights")
        if probe is not None:
            error = _measured(probe, program, folding, batch=batch)
    record = PassRecord(folding.name, "decode", len(report.rewrites), report.skips, error)
    return Folded(ProgramSet({**programs.programs, "decode": program}), record)


def _folded(folding: Pass, single: Program) -> tuple[Program, PassReport]:
    hint = "build for one prompt (batch: 1), or leave out the pass that made it so"
    return run_on_copy(folding, single, hint=hint, code="not-folded")


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
