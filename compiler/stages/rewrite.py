"""ProgramSet -> ProgramSet, pass by pass, each checked.

The order is checked before anything runs. After each pass and phase: the skeleton is valid ONNX,
names are unique, the graph is acyclic, the signature changed only where the pass declares it, the
report agrees with what changed, and every invariant registered so far still holds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from compiler.contracts.errors import CompilerError, PassError, raise_all
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport
from compiler.contracts.program import PHASES, Phase, Program, ProgramSet, TensorSpec
from compiler.contracts.progress import Progress

Specs = tuple[TensorSpec, ...]


@dataclass(frozen=True)
class PlannedPass:
    """A pass and the place that asked for it: `model.yaml:9:3`, the default's or target's name."""

    rewrite: Pass
    place: str


@dataclass(frozen=True)
class Rewritten:
    """The programs after the last pass, what each pass did, and the snapshots by relative path."""

    programs: ProgramSet
    records: tuple[PassRecord, ...]
    snapshots: Mapping[str, bytes]


@dataclass
class _PhaseState:
    """What the driver remembers of one phase between passes."""

    program: Program
    model: bytes
    invariants: list[Invariant] = field(default_factory=list)


def check_order(passes: Sequence[PlannedPass]) -> None:
    """Refuse an order in which a pass lacks what it requires, or stands before what it follows.

    Raises:
        PassError: Every violation, each with the place that asked for the pass.
    """
    errors: list[CompilerError] = []
    names = [planned.rewrite.name for planned in passes]
    for index, planned in enumerate(passes):
        name, place = planned.rewrite.name, planned.place
        earlier = set(names[:index])
        errors += [
            PassError(
                f"pass '{name}' needs '{required}' before it",
                where=place,
                hint=f"put '{required}' above '{name}'",
                code="pass-order",
            )
            for required in planned.rewrite.required()
            if required not in earlier
        ]
        errors += [
            PassError(
                f"pass '{name}' must stand after '{other}'",
                where=place,
                hint=f"move '{name}' below '{other}'",
                code="pass-order",
            )
            for other in planned.rewrite.after
            if other in names[index + 1 :]
            and other not in earlier
            and other not in planned.rewrite.required()
        ]
    raise_all(errors)


def rewrite(
    programs: ProgramSet,
    passes: Sequence[PlannedPass],
    *,
    is_verified: bool = True,
    progress: Progress | None = None,
) -> Rewritten:
    """Run the passes in order on each of their phases, checking after each.

    Args:
        programs: The traced programs; rewritten in place.
        passes: In order, the target's last.
        is_verified: Without it only the order is checked (`verify: off`).
        progress: Told of each finished pass.

    Raises:
        PassError: A pass broke the structure, its declaration or an invariant; names pass and node.
    """
    check_order(passes)
    states: dict[Phase, _PhaseState] = {
        phase: _entered(program) for phase, program in programs.programs.items()
    }
    snapshots = {snapshot_name(phase, 0, "trace"): state.model for phase, state in states.items()}
    records: list[PassRecord] = []
    for number, planned in enumerate(passes, start=1):
        name = planned.rewrite.name
        for phase in (phase for phase in PHASES if phase in states):
            if phase not in planned.rewrite.phases:
                continue
            state = states[phase]
            report = _run(planned, state, is_verified=is_verified)
            records.append(PassRecord(name, phase, len(report.rewrites), report.skips))
            snapshots[snapshot_name(phase, number, name)] = state.model
        if progress is not None:
            progress.update(number, len(passes), "passes")
    return Rewritten(programs, tuple(records), snapshots)


def snapshot_name(phase: Phase, number: int, name: str) -> str:
    """`prefill/03-fold-mask.onnx`, relative to the bundle's `ir`."""
    return Path(phase, f"{number:02d}-{name}.onnx").as_posix()


def _entered(program: Program) -> _PhaseState:
    model = program.model()
    problem = _invalid(program, model)
    assert problem is None, f"the traced {program.phase} graph is invalid: {problem}"
    return _PhaseState(program, model.SerializeToString(deterministic=True))


def _run(planned: PlannedPass, state: _PhaseState, *, is_verified: bool) -> PassReport:
    rewriting, program = planned.rewrite, state.program
    signature = (program.inputs(), program.outputs())
    state.invariants += rewriting.invariants(program)
    report = rewriting.run(program)
    program.prune_parameters()
    model = program.model()
    data = model.SerializeToString(deterministic=True)
    problem = None
    if is_verified:
        problem = (
            _structure_problem(program, model)
            or _signature_problem(rewriting, signature, program)
            or _report_problem(report, is_changed=data != state.model)
            or _invariant_problem(state)
        )
    if problem is not None:
        raise PassError(
            f"pass '{rewriting.name}' on {program.phase}: {problem}",
            where=planned.place,
            hint="the pass is at fault: report it to its author",
        )
    state.model = data
    return report


def _structure_problem(program: Program, model: onnx.ModelProto) -> str | None:
    problem = _invalid(program, model)
    return None if problem is None else f"left an invalid graph: {problem}"


def _signature_problem(
    rewriting: Pass, before: tuple[Specs, Specs], program: Program
) -> str | None:
    if rewriting.changes_signature:
        return None
    after = (program.inputs(), program.outputs())
    for side, old, new in zip(("inputs", "outputs"), before, after, strict=True):
        if old != new:
            return f"changed the signature without declaring it: {side} {old} became {new}"
    return None


def _report_problem(report: PassReport, *, is_changed: bool) -> str | None:
    if report.rewrites and not is_changed:
        return f"reports {len(report.rewrites)} rewrites, but the graph is unchanged"
    if is_changed and not report.rewrites:
        return "reports no rewrite, but the graph changed"
    return None


def _invariant_problem(state: _PhaseState) -> str | None:
    for invariant in state.invariants:
        violations = invariant.violations(state.program)
        if violations:
            return f"broke '{invariant.name}': {'; '.join(violations)}"
    return None


def _invalid(program: Program, model: onnx.ModelProto) -> str | None:
    """What is wrong with the skeleton; None when nothing is."""
    repeated = [
        name for name, n in Counter(node.name for node in model.graph.node).items() if n > 1
    ]
    if repeated:
        return f"several nodes are called {repeated[0]!r}"
    unnamed = next((node for node in model.graph.node if not node.name), None)
    if unnamed is not None:
        return f"a {unnamed.op_type} node has no name"
    present = {tensor.name for tensor in program.graph.inputs}
    missing = [name for name in program.weights if name not in present]
    if missing:
        return f"parameter {missing[0]!r} is in the weight table and not in the graph"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return " ".join(str(error).split())
    return None
