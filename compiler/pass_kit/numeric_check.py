"""A pass's contract, held to what onnxruntime computes before and after it on a case."""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import onnx
import onnx.inliner

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays, Contract, Pass
from compiler.contracts.program import Program
from compiler.numerics.feeds import Lengths
from compiler.numerics.reference_run import ReferenceSession, in_float64
from compiler.numerics.tolerance import Breach, first_breach
from compiler.pass_kit.cases import Case
from compiler.pass_kit.findings import Finding, Found, raised

# What two orders of arithmetic may differ by in float64, where nothing is rounded.
_UNROUNDED = Contract.close(rtol=1e-9, atol=1e-9)


def check_numbers(rewriting: Pass, case: Case, program: Program, *, has_float64: bool) -> None:
    """Run both graphs for each of the case's lengths.

    Args:
        rewriting: The pass.
        case: Before it.
        program: After it.
        has_float64: Whether a difference is shown against float64, too.

    Raises:
        Found: The new graph cannot be run, an adapter is wrong, or the contract is left.
        PassError: The graph before the pass cannot be run.
    """
    before = ReferenceSession(case.program.model())
    try:
        after = ReferenceSession(program.model())
    except PassError as error:
        raise Found(Finding("numbers", "not runnable", error.message)) from error
    old_parameters = _adapted_weights(rewriting, case, program)
    parameters = case.parameters(program)
    for lengths in case.lengths:
        old_inputs = case.inputs(lengths)
        old = _run_before(before, {**old_parameters, **old_inputs}, rewriting)
        inputs, wanted = _adapted(rewriting, program, old_inputs, old)
        _refuse_silence(program, inputs, wanted)
        try:
            found = after.run({**parameters, **inputs})
        except PassError as error:
            finding = Finding("numbers", "not runnable", error.message, lengths)
            raise Found(finding) from error
        breach = first_breach(rewriting.promise(), wanted, found)
        if breach is not None and has_float64 and _can_widen(case.program):
            exact = _in_float64(case.program, {**old_parameters, **old_inputs})
            _, float64 = _adapted(rewriting, program, old_inputs, exact)
            breach = first_breach(rewriting.promise(), wanted, found, float64=float64) or breach
        if breach is not None:
            raise _left(rewriting, breach, lengths, said=breach.said)
        if rewriting.promise().kind == "rounds":
            _check_rounding(rewriting, (case, program), (old_parameters, parameters), lengths)


def _check_rounding(
    rewriting: Pass,
    programs: tuple[Case, Program],
    parameters: tuple[Arrays, Arrays],
    lengths: Lengths,
) -> None:
    """In float64, where nothing is rounded, both graphs must agree."""
    case, program = programs
    if not (_can_widen(case.program) and _can_widen(program)):
        return
    old_inputs = case.inputs(lengths)
    old = _in_float64(case.program, {**parameters[0], **old_inputs})
    inputs, wanted = _adapted(rewriting, program, _widened(old_inputs), old)
    found = _in_float64(program, {**parameters[1], **inputs})
    breach = first_breach(_UNROUNDED, wanted, found)
    if breach is not None:
        raise _left(rewriting, breach, lengths, said=f"in float64, too, {breach.said}")


def _left(rewriting: Pass, breach: Breach, lengths: Lengths, *, said: str) -> Found:
    windows = f"{lengths.past} past and {lengths.valid} valid tokens"
    sentence = f"promises {rewriting.promise()}, but with {windows} {said}"
    return Found(Finding("numbers", breach.finding, sentence, lengths))


def _run_before(session: ReferenceSession, feeds: Arrays, rewriting: Pass) -> dict[str, np.ndarray]:
    try:
        return session.run(feeds)
    except PassError as error:
        if type(rewriting).adapt_weights is Pass.adapt_weights:
            raise
        said = f"adapt_weights gives what the graph before cannot take: {error.message}"
        raise Found(Finding("numbers", "adapt_weights", said)) from error


def _can_widen(program: Program) -> bool:
    """Whether the graph runs in float64: int8 weights, if there are any, are its inputs."""
    graph = onnx.inliner.inline_local_functions(program.model()).graph
    inputs = {value.name for value in graph.input}
    return all(
        node.input[0] in inputs and not any(node.input[2:])
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    )


def _in_float64(program: Program, feeds: Arrays) -> dict[str, np.ndarray]:
    return ReferenceSession(in_float64(program.model())).run(_widened(feeds))


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
        raise raised("adapting to the new graph", error) from error


def _read_only(arrays: Arrays) -> Arrays:
    """The same, for adapters, which make new arrays."""
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(dict(arrays))


def _refuse_silence(program: Program, inputs: Arrays, wanted: Arrays) -> None:
    """Refuse adapters that say nothing of an input or output of the new graph."""
    for adapter, given, specs in (
        ("adapt_inputs", inputs, program.inputs()),
        ("adapt_outputs", wanted, program.outputs()),
    ):
        missing = [spec.name for spec in specs if spec.name not in given]
        if missing:
            said = f"{adapter} says nothing of {missing[0]}, which the new graph has"
            raise Found(Finding("signature", "not adapted", said))
