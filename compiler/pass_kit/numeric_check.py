"""A pass's contract, held to what onnxruntime computes before and after it on a case."""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from compiler.contracts.errors import PassError
from compiler.contracts.pass_base import Arrays, Pass
from compiler.contracts.program import Program
from compiler.numerics.feeds import Lengths
from compiler.numerics.float64 import RoundingCheck, in_float64, widened
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tolerance import Breach, first_breach
from compiler.pass_kit.cases import Case
from compiler.pass_kit.findings import Finding, Found, raised


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
    models, promise = (case.program.model(), program.model()), rewriting.promise()
    before = ReferenceSession(models[0])
    try:
        after = ReferenceSession(models[1])
    except PassError as error:
        raise Found(Finding("numbers", "not runnable", error.message)) from error
    rounding = RoundingCheck(*models) if promise.kind == "rounds" else None
    unadapted = case.parameters(case.program)
    old_parameters = _adapted_weights(rewriting, unadapted, program)
    exact_parameters = (
        _adapted_weights(rewriting, widened(unadapted), program) if rounding is not None else {}
    )
    parameters = case.parameters(program)
    for lengths in case.lengths:
        old_inputs = case.inputs(lengths)
        old_feeds = {**old_parameters, **old_inputs}
        old = _run_before(before, old_feeds, rewriting)
        inputs, wanted = _adapted(rewriting, program, old_inputs, old)
        _refuse_silence(program, inputs, wanted)
        feeds = {**parameters, **inputs}
        try:
            found = after.run(feeds)
        except PassError as error:
            finding = Finding("numbers", "not runnable", error.message, lengths)
            raise Found(finding) from error

        def adapt(outputs: Arrays, given: Arrays = old_inputs) -> Arrays:
            return _adapted(rewriting, program, given, outputs)[1]

        breach = first_breach(promise, wanted, found)
        if breach is not None and has_float64:
            exact = ReferenceSession(in_float64(models[0])).run(widened(old_feeds))
            breach = first_breach(promise, wanted, found, float64=adapt(exact)) or breach
        elif breach is None and rounding is not None:
            breach = rounding.breach({**exact_parameters, **old_inputs}, feeds, adapt)
        if breach is not None:
            raise _left(rewriting, breach, lengths)


def _left(rewriting: Pass, breach: Breach, lengths: Lengths) -> Found:
    windows = f"{lengths.past} past and {lengths.valid} valid tokens"
    sentence = f"promises {rewriting.promise()}, but with {windows} {breach.said}"
    return Found(Finding("numbers", breach.finding, sentence, lengths))


def _run_before(session: ReferenceSession, feeds: Arrays, rewriting: Pass) -> dict[str, np.ndarray]:
    try:
        return session.run(feeds)
    except PassError as error:
        if type(rewriting).adapt_weights is Pass.adapt_weights:
            raise
        said = f"adapt_weights gives what the graph before cannot take: {error.message}"
        raise Found(Finding("numbers", "adapt_weights", said)) from error


def _adapted_weights(rewriting: Pass, old: Arrays, program: Program) -> dict[str, np.ndarray]:
    """The parameters on which the graph before the pass is run."""
    parameters = _read_only(old)
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
