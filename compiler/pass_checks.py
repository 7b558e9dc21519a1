"""Whether a pass left a sound program, and told the truth about it; numbers apart."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program, TensorSpec


@dataclass(frozen=True)
class ProgramState:
    """Everything of a program that a pass may change, to be compared.

    Attributes:
        model: The skeleton as ONNX bytes.
        weights: Parameter -> key of its expression.
        aliases: Output -> the input that is updated in place.
        logits_of: Whose logits it gives.
        inputs: The activations.
        outputs: What a caller gets.
        names: Of nodes and of what they make.
    """

    model: bytes
    weights: Mapping[str, str]
    aliases: Mapping[str, str]
    logits_of: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    names: frozenset[str]


def state_of(program: Program, model: onnx.ModelProto | None = None) -> ProgramState:
    """A program's state; `model` is `program.model()`, where that is at hand."""
    model = model or program.model()
    return ProgramState(
        model=model.SerializeToString(deterministic=True),
        weights={name: weight.key for name, weight in program.weights.items()},
        aliases=dict(program.aliases),
        logits_of=program.logits_of,
        inputs=program.inputs(),
        outputs=program.outputs(),
        names=frozenset(n for node in model.graph.node for n in (node.name, *node.output)),
    )


def structure_problem(program: Program, model: onnx.ModelProto) -> tuple[str, str] | None:
    """(kind, clause) of what is wrong with the skeleton; None when nothing is."""
    counts = Counter(node.name for node in model.graph.node)
    if "" in counts:
        unnamed = next(node for node in model.graph.node if not node.name)
        return "names", f"a {unnamed.op_type} node has no name"
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        return "names", f"several nodes are called {repeated[0]!r}"
    present = {tensor.name for tensor in program.graph.inputs}
    missing = [name for name in program.weights if name not in present]
    if missing:
        return "weights", f"parameter {missing[0]!r} is in the weight table and not in the graph"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return "invalid", " ".join(str(error).split())
    return None


def invalid_graph(program: Program, model: onnx.ModelProto) -> str | None:
    """`structure_problem` as what a pass did."""
    problem = structure_problem(program, model)
    return None if problem is None else f"left an invalid graph: {problem[1]}"


def broken_invariant(program: Program, invariants: Iterable[Invariant]) -> str | None:
    """The first that no longer holds."""
    for invariant in invariants:
        violations = invariant.violations(program)
        if violations:
            return f"broke '{invariant.name}': {'; '.join(violations)}"
    return None


def signature_problem(rewriting: Pass, before: ProgramState, after: ProgramState) -> str | None:
    """How the signature changed without being declared."""
    if rewriting.changes_signature:
        return None
    for side, old, new in (
        ("inputs", before.inputs, after.inputs),
        ("outputs", before.outputs, after.outputs),
    ):
        if old != new:
            gone = [f"{spec.name} {list(spec.shape)}" for spec in old if spec not in new]
            came = [f"{spec.name} {list(spec.shape)}" for spec in new if spec not in old]
            return f"changed the {side} without declaring it: {gone} became {came}"
    return None


def report_problem(report: PassReport, before: ProgramState, after: ProgramState) -> str | None:
    """How the report contradicts what happened to the program."""
    if report.rewrites and before == after:
        return f"reports {len(report.rewrites)} rewrites, but the graph is unchanged"
    if not report.rewrites and before.model != after.model:
        return "reports no rewrite, but the graph changed"
    if not report.rewrites and before != after:
        return "reports no rewrite, but weights, aliases or logits_of changed"
    known = before.names | after.names | before.weights.keys() | after.weights.keys()
    unknown = next((name for name in report.rewrites if name not in known), None)
    return None if unknown is None else f"reports {unknown!r}, which no node or tensor is called"
