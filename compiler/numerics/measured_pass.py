"""One phase of a probe, followed through the passes: each contract is held to its numbers.

traced graph --run--> outputs, in float32 and float64
pass: inputs and outputs adapted -> what the new graph must give --run--> within the contract?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Arrays, Contract, Pass
from compiler.contracts.program import Program
from compiler.contracts.weight_values import RowReader, value
from compiler.contracts.weights import Weight
from compiler.numerics.divergence import Divergence, Run, first_divergence
from compiler.numerics.feeds import lengths_of, program_feeds
from compiler.numerics.float64 import RoundingCheck, in_float64, widened, widened_floats
from compiler.numerics.reference_run import ReferenceSession, ort_value
from compiler.numerics.tolerance import Breach, first_breach, largest_error

if TYPE_CHECKING:
    from onnxruntime import OrtValue


@dataclass(frozen=True)
class Measured:
    """Largest absolute differences over all outputs and inputs tried.

    Attributes:
        error: From the graph before the pass.
        float64_error: From the traced graph in float64; None where that was not run.
    """

    error: float
    float64_error: float | None


@dataclass(frozen=True)
class _Case:
    """One set of inputs, and what the graph must give for it."""

    inputs: Arrays
    outputs: Arrays
    float64: Arrays | None


class MeasuredPhase:
    """Numbers of one phase, from the trace on.

    Args:
        program: As traced; the driver rewrites it in place.
        read: Its checkpoint's rows.
        vocabulary: Token ids lie below it.
        has_float64: Whether the traced graph is run in float64, too; it takes twice the memory.

    Attributes:
        at_start: The traced graph's own error in float32.
    """

    def __init__(
        self, program: Program, read: RowReader, *, vocabulary: int, has_float64: bool = True
    ) -> None:
        self._parameters = ParameterValues(read)
        self._model, self._weights = program.model(), dict(program.weights)
        self._bound = self._parameters.of(self._weights)
        session = ReferenceSession(self._model)
        inputs = [
            program_feeds(program, lengths, vocabulary=vocabulary)
            for lengths in lengths_of(program)
        ]
        outputs = [session.run({**self._bound, **given}) for given in inputs]
        float64 = self._in_float64(inputs) if has_float64 else [None] * len(inputs)
        self._cases = tuple(map(_Case, inputs, outputs, float64))
        self.at_start = _worst([_measured(case, case.outputs) for case in self._cases])

    def _in_float64(self, inputs: Sequence[Arrays]) -> list[Arrays]:
        session = ReferenceSession(in_float64(self._model))
        parameters = widened(self._parameters.arrays(self._weights))
        return [session.run({**parameters, **widened(given)}) for given in inputs]

    def follow(self, rewriting: Pass, program: Program) -> Measured:
        """Run the graph after a pass on the inputs of the one before it.

        Returns:
            The largest difference from the graph before, and from the traced graph in float64.

        Raises:
            CheckFailed: The pass left its contract; the message says where, and where it began.
            PassError: The new graph cannot be run, or refuses inputs of its domain.
        """
        rounded = self._with_adapted_weights(rewriting, program)
        model, bound = program.model(), self._parameters.of(program.weights)
        session = ReferenceSession(model)
        promise = rewriting.promise()
        cases: list[_Case] = []
        measured: list[Measured] = []
        for case in rounded:
            after = _adapted(case, rewriting, program)
            found = session.run({**bound, **after.inputs})
            breach = first_breach(promise, after.outputs, found, float64=after.float64)
            if breach is not None:
                before = Run(self._model, {**self._bound, **case.inputs})
                now = Run(model, {**bound, **after.inputs})
                raise _left(promise, breach, first_divergence(before, now, wanted=after.outputs))
            measured.append(_measured(after, found))
            cases.append(replace(after, outputs=found))
        if promise.kind == "rounds":
            self._check_rounding(rewriting, program)
        self._model, self._weights = model, dict(program.weights)
        self._bound, self._cases = bound, tuple(cases)
        return _worst(measured)

    def _check_rounding(self, rewriting: Pass, program: Program) -> None:
        """Where nothing is rounded, the graphs before and after must agree."""
        check = RoundingCheck(self._model, program.model())
        unrounded = widened_floats(self._parameters.arrays(self._weights))
        weights = rewriting.adapt_weights(unrounded, program)
        parameters = self._parameters.arrays(program.weights)
        for case in self._cases:
            feeds = (
                {**weights, **case.inputs},
                {**parameters, **rewriting.adapt_inputs(widened_floats(case.inputs), program)},
            )
            wanted = partial(rewriting.adapt_outputs, old_inputs=case.inputs, program=program)
            breach = check.breach(*feeds, wanted)
            if breach is not None:
                raise _left(rewriting.promise(), breach, check.divergence(*feeds, wanted))

    def _with_adapted_weights(self, rewriting: Pass, program: Program) -> tuple[_Case, ...]:
        """The cases as the graph before the pass answers them on the weights that it rounds to."""
        if type(rewriting).adapt_weights is Pass.adapt_weights:
            return self._cases
        values = rewriting.adapt_weights(self._parameters.arrays(self._weights), program)
        self._bound = {name: ort_value(array) for name, array in values.items()}
        session = ReferenceSession(self._model)
        return tuple(
            replace(case, outputs=session.run({**self._bound, **case.inputs}))
            for case in self._cases
        )


def _adapted(case: _Case, rewriting: Pass, program: Program) -> _Case:
    """The case for the graph after the pass, with the outputs that it must give."""
    return _Case(
        inputs=rewriting.adapt_inputs(case.inputs, program),
        outputs=rewriting.adapt_outputs(case.outputs, case.inputs, program),
        float64=case.float64 and rewriting.adapt_outputs(case.float64, case.inputs, program),
    )


def _measured(case: _Case, found: Arrays) -> Measured:
    exact = case.float64
    return Measured(
        error=largest_error(case.outputs, found),
        float64_error=None if exact is None else largest_error(exact, found),
    )


def _worst(measured: Sequence[Measured]) -> Measured:
    """The largest of each error."""
    exact = [one.float64_error for one in measured if one.float64_error is not None]
    return Measured(max(one.error for one in measured), max(exact, default=None))


class ParameterValues:
    """Values of parameters, each expression evaluated once for as long as a program uses it."""

    def __init__(self, read: RowReader) -> None:
        self._read = read
        self._by_key: dict[str, OrtValue] = {}

    def of(self, weights: Mapping[str, Weight]) -> "dict[str, OrtValue]":
        """By parameter name."""
        kept = {weight.key: weight for weight in weights.values()}
        self._by_key = {
            key: self._by_key.get(key) or ort_value(value(weight, self._read))
            for key, weight in kept.items()
        }
        return {name: self._by_key[weight.key] for name, weight in weights.items()}

    def arrays(self, weights: Mapping[str, Weight]) -> dict[str, np.ndarray]:
        """By parameter name, evaluated anew."""
        return {name: value(weight, self._read) for name, weight in weights.items()}


def _left(contract: Contract, breach: Breach, divergence: Divergence | None) -> CheckFailed:
    """The error: what was promised, what came, and the first node that is at fault."""
    begins = "" if divergence is None else f"; {divergence}"
    return CheckFailed(f"promises {contract}, but {breach.said}{begins}", code="pass-contract")
