"""Everything that a pass must keep, tried on one case.

run                 raises nothing but a CompilerError
structure           valid ONNX, every node with a name of its own
signature, report   changed only as declared; a report of rewrites exactly where the graph changed
numbers             the contract, on onnxruntime, for each of the case's lengths
invariants          those before it and its own
repeat, determinism a second run changes nothing; a run on an equal graph gives an equal graph
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import onnx
import onnx.inliner

from compiler.contracts.errors import CompilerError, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Arrays, Pass, PassReport, Skip
from compiler.contracts.program import Program
from compiler.numerics.feeds import Lengths
from compiler.numerics.reference_run import ReferenceSession, in_float64
from compiler.numerics.tolerance import first_breach
from compiler.pass_kit.cases import Case
from compiler.pass_kit.structure import report_problem, signature_problem, structure_problem

Check = Literal[
    "run",
    "structure",
    "signature",
    "report",
    "numbers",
    "invariants",
    "repeat",
    "determinism",
]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Finding:
    """What a pass did wrong.

    Attributes:
        check: What it failed.
        kind: Which way, so that two findings can be held to be the same fault.
        said: A sentence with the values in it.
        lengths: Where it showed in numbers.
    """

    check: Check
    kind: str
    said: str
    lengths: Lengths | None = None

    def is_like(self, other: "Finding | None") -> bool:
        """Whether both are the same kind of fault."""
        return other is not None and (self.check, self.kind) == (other.check, other.kind)


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


class _Raised(Exception):
    """The pass raised what it may not raise."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.said)
        self.finding = finding


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
    except _Raised as raised:
        return Outcome(finding=raised.finding)
    except CompilerError as error:
        return Outcome(refusal=error.message)
    try:
        _guarded(_exported, "export of the new graph", program)
        is_changed = _bytes(program) != _bytes(case.program)
        finding = _graph_finding(rewriting, case, program, report)
        if finding is None and is_changed and has_numbers:
            finding = _numbers_finding(rewriting, case, program, has_float64=has_float64)
        finding = (
            finding
            or _invariants_finding((*case.invariants(), *own), program)
            or _repeat_finding(rewriting, case, program, report)
        )
    except _Raised as raised:
        finding = raised.finding
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
        raise _raised(name, error) from error


def _raised(name: str, error: Exception) -> _Raised:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    said = f"{name} raises {type(error).__name__}: {error} ({place})"
    return _Raised(Finding("run", f"{name}: {type(error).__name__}", said))


def _graph_finding(
    rewriting: Pass, case: Case, program: Program, report: PassReport
) -> Finding | None:
    """What is wrong with the graph, its signature or the report of it."""
    model = program.model()
    kind, said = structure_problem(model) or ("", None)
    if said is not None:
        return Finding("structure", kind, said)
    said = signature_problem(rewriting, case.program, program)
    if said is not None:
        return Finding("signature", "changed", said)
    said = report_problem(report, case.program.model(), model)
    return None if said is None else Finding("report", said.split(",")[0], said)


def _numbers_finding(
    rewriting: Pass, case: Case, program: Program, *, has_float64: bool
) -> Finding | None:
    """Where the new graph leaves the contract, on each of the case's lengths."""
    model = case.program.model()
    before = ReferenceSession(model)
    try:
        after = ReferenceSession(program.model())
    except PassError as error:
        return Finding("numbers", "not runnable", error.message)
    old_parameters = _adapted_weights(rewriting, case, program)
    parameters = case.parameters(program)
    for lengths in case.lengths:
        old_inputs = case.inputs(lengths)
        try:
            old = before.run({**old_parameters, **old_inputs})
        except PassError as error:
            if type(rewriting).adapt_weights is Pass.adapt_weights:
                raise
            said = f"adapt_weights gives what the graph before cannot take: {error.message}"
            return Finding("numbers", "adapt_weights", said)
        inputs, wanted = _adapted(rewriting, program, old_inputs, old)
        said = _untold(program, inputs, wanted)
        if said is not None:
            return Finding("signature", "not adapted", said)
        try:
            found = after.run({**parameters, **inputs})
        except PassError as error:
            return Finding("numbers", "not runnable", error.message, lengths)
        breach = first_breach(rewriting.promise(), wanted, found)
        if breach is None:
            continue
        if has_float64 and can_widen(model):
            wide = ReferenceSession(in_float64(model))
            exact = wide.run(_widened({**old_parameters, **old_inputs}))
            _, float64 = _adapted(rewriting, program, old_inputs, exact)
            breach = first_breach(rewriting.promise(), wanted, found, float64=float64) or breach
        said = (
            f"promises {rewriting.promise()}, but with {lengths.past} past and {lengths.valid} "
            f"valid tokens {breach.said}"
        )
        return Finding("numbers", breach.finding, said, lengths)
    return None


def can_widen(model: onnx.ModelProto) -> bool:
    """Whether the graph runs in float64: int8 weights, if there are any, are its inputs."""
    graph = onnx.inliner.inline_local_functions(model).graph
    inputs = {value.name for value in graph.input}
    return all(
        node.input[0] in inputs and len(node.input) == 2
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    )


def _widened(arrays: Arrays) -> dict[str, np.ndarray]:
    return {
        name: array.astype(np.float64) if array.dtype.kind in "fV" else array
        for name, array in arrays.items()
    }


def _adapted_weights(rewriting: Pass, case: Case, program: Program) -> dict[str, np.ndarray]:
    """The parameters on which the graph before the pass is run."""
    parameters = _read_only(case.parameters(case.program))
    return _adapt(lambda: rewriting.adapt_weights(parameters, program))


def _adapted(
    rewriting: Pass, program: Program, old_inputs: Arrays, old: Arrays
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the new graph takes, and what it must give."""
    given, made = _read_only(old_inputs), _read_only(old)
    inputs = _adapt(lambda: rewriting.adapt_inputs(given, program))
    return inputs, _adapt(lambda: rewriting.adapt_outputs(made, given, program))


def _adapt(call: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What an adapter gives; the inputs are in its domain, so that it may refuse nothing."""
    try:
        return call()
    except Exception as error:  # a foreign pass: whatever it raises is the finding
        raise _raised("adapting to the new graph", error) from error


def _read_only(arrays: Arrays) -> Arrays:
    """The same, for adapters, which make new arrays."""
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(dict(arrays))


def _untold(program: Program, inputs: Arrays, wanted: Arrays) -> str | None:
    """An input or output of the new graph of which the pass says nothing."""
    for adapter, given, specs in (
        ("adapt_inputs", inputs, program.inputs()),
        ("adapt_outputs", wanted, program.outputs()),
    ):
        missing = [spec.name for spec in specs if spec.name not in given]
        if missing:
            return f"{adapter} says nothing of {missing[0]}, which the new graph has"
    return None


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
        if (same, _bytes(again)) != (report, _bytes(program)):
            return Finding("determinism", "differs", "two runs on equal graphs differ")
        second = _guarded(rewriting.run, "a second run", again)
    except CompilerError as error:
        return Finding("repeat", "refused", f"a second run refuses its own result: {error.message}")
    again.prune_parameters()
    if second.rewrites:
        return Finding("repeat", "rewrites", f"a second run rewrites {second.rewrites[0]} again")
    if _bytes(again) != _bytes(program):
        return Finding("repeat", "changes", "a second run changes the graph without a report")
    return None


def _bytes(program: Program) -> bytes:
    return program.model().SerializeToString(deterministic=True)
