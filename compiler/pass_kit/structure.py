"""Whether a pass left a sound graph, and told the truth about it."""

from collections import Counter

import onnx

from compiler.contracts.pass_base import Pass, PassReport
from compiler.contracts.program import Program


def structure_problem(model: onnx.ModelProto) -> tuple[str, str] | None:
    """(kind, sentence) of what is wrong with the skeleton; None when nothing is."""
    counts = Counter(node.name for node in model.graph.node)
    repeated = [name for name, count in counts.items() if count > 1]
    if "" in counts:
        unnamed = next(node for node in model.graph.node if not node.name)
        return "names", f"leaves a {unnamed.op_type} node without a name"
    if repeated:
        return "names", f"leaves several nodes called {repeated[0]!r}"
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return "invalid", f"leaves an invalid graph: {' '.join(str(error).split())}"
    return None


def signature_problem(rewriting: Pass, before: Program, after: Program) -> str | None:
    """How the signature changed without being declared."""
    if rewriting.changes_signature:
        return None
    for side, old, new in (
        ("inputs", before.inputs(), after.inputs()),
        ("outputs", before.outputs(), after.outputs()),
    ):
        if old != new:
            gone = [spec.name for spec in old if spec not in new]
            came = [spec.name for spec in new if spec not in old]
            return f"changes the {side} without declaring it: {gone} became {came}"
    return None


def report_problem(
    report: PassReport, before: onnx.ModelProto, after: onnx.ModelProto
) -> str | None:
    """How the report contradicts what happened to the graph."""
    is_changed = _bytes(before) != _bytes(after)
    if report.rewrites and not is_changed:
        return f"reports rewrites, {len(report.rewrites)}, but the graph is unchanged"
    if is_changed and not report.rewrites:
        return "reports no rewrite, but the graph changed"
    known = _names(before) | _names(after)
    unknown = next((name for name in report.rewrites if name not in known), None)
    if unknown is not None:
        return f"reports a rewrite, {unknown!r}, which no node or tensor is called"
    return None


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _names(model: onnx.ModelProto) -> set[str]:
    """Names of nodes and of what they make."""
    return {name for node in model.graph.node for name in (node.name, *node.output)}
