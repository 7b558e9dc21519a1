"""Programs and passes -> the first pass that changes the numbers, by binary search.

All passes run first, unchecked, and the graph after each is kept. A step of the search runs one of
these graphs on the traced graph's inputs, adapted, and holds its outputs to the traced graph's,
adapted, within what the passes between promise together. A pass that rounds is held to the graph
before it by itself, on the weights that it rounds to: the search stops there, and goes on behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.contracts.pass_base import Arrays, Contract, Pass
from compiler.contracts.program import Phase, Program
from compiler.contracts.weight_values import value
from compiler.numerics.divergence import Divergence, Run, first_divergence
from compiler.numerics.feeds import Lengths, lengths_of, program_feeds
from compiler.numerics.float64 import RoundingCheck, widened_floats
from compiler.numerics.probe import ProbeModel
from compiler.numerics.reference_run import ReferenceSession
from compiler.numerics.tolerance import Breach, first_breach
from compiler.pass_checks import state_of
from compiler.pass_order import PlannedPass, check_order


@dataclass(frozen=True)
class Culprit:
    """The first pass whose output leaves what is promised.

    Attributes:
        planned: The pass.
        phase: The first phase in which it does so.
        breach: The output, and how far it is off.
        divergence: Where it begins; None where no tensor between is shared.
        before: The program that the pass got, of the probe.
        lengths: Past and valid tokens that show it.
    """

    planned: PlannedPass
    phase: Phase
    breach: Breach
    divergence: Divergence | None
    before: Program
    lengths: Lengths


@dataclass(frozen=True)
class Bisection:
    """What was found, and after which passes (by number, from 1) a graph was run to find it."""

    culprit: Culprit | None
    runs: tuple[int, ...]


@dataclass(frozen=True)
class _Fault:
    """One comparison that failed: inputs before and after, and what must come of them."""

    phase: Phase
    breach: Breach
    lengths: Lengths
    inputs: Arrays
    adapted: Arrays
    wanted: Arrays


@dataclass(frozen=True)
class _History:
    """One phase: its passes, the program after each, and whether that pass changed it."""

    passes: tuple[Pass, ...]
    programs: tuple[Program, ...]
    is_changed: tuple[bool, ...]


@dataclass
class _Search:
    """The comparisons, counted."""

    passes: Sequence[Pass]
    histories: Sequence[_History]
    probe: ProbeModel
    tolerance: float | None
    runs: list[int] = field(default_factory=list[int])
    known: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    def first_bad(self, base: int, last: int) -> int:
        """The first of base + 1 .. last after which the numbers differ; last + 1 if none does."""
        low, high = base + 1, last + 1
        while low < high:
            middle = (low + high) // 2
            self.runs.append(middle)
            if self.fault(base, middle) is None:
                low = middle + 1
            else:
                high = middle
        return low

    def fault(self, base: int, number: int) -> _Fault | None:
        """How the graph after pass `number` does not do what the one after `base` does."""
        for history in self.histories:
            if any(history.is_changed[base + 1 : number + 1]):
                found = self._fault_of(history, base, number)
                if found is not None:
                    return found
        return None

    def _fault_of(self, history: _History, base: int, number: int) -> _Fault | None:
        before, after = history.programs[base], history.programs[number]
        weights = self._rounded(history, base, number, self.values(before))
        old, new, parameters = _session(before), _session(after), self.values(after)
        rounding = self._rounding_check(before, after, self.passes[base:number])
        for lengths in lengths_of(before):
            inputs = program_feeds(before, lengths, vocabulary=self.probe.vocabulary)
            given = {**weights, **inputs}
            outputs = old.run(given)
            adapted, wanted = self._adapted(history, base, number, inputs, outputs)
            feeds = {**parameters, **adapted}
            breach = first_breach(self._allowed(base, number), wanted, new.run(feeds))
            if breach is None and rounding is not None:
                exact_weights = self._rounded(
                    history, base, number, widened_floats(self.values(before))
                )
                unrounded, _ = self._adapted(history, base, number, widened_floats(inputs), outputs)
                breach = rounding.breach(
                    {**exact_weights, **inputs},
                    {**parameters, **unrounded},
                    lambda exact, inputs=inputs: self._adapted(
                        history, base, number, inputs, exact
                    )[1],
                )
            if breach is not None:
                return _Fault(before.phase, breach, lengths, inputs, adapted, wanted)
        return None

    def _rounded(self, history: _History, base: int, number: int, old: Arrays) -> Arrays:
        """The weights of the graph after `base`; before a single pass, what it rounds them to."""
        if number > base + 1:
            return old
        return history.passes[base].adapt_weights(old, history.programs[number])

    def _rounding_check(
        self, before: Program, after: Program, passes: Sequence[Pass]
    ) -> RoundingCheck | None:
        """Where a pass promises to round alone, and no tolerance stands in its promise's place."""
        if self.tolerance is not None or all(one.promise().kind != "rounds" for one in passes):
            return None
        return RoundingCheck(before.model(), after.model())

    def _adapted(
        self, history: _History, base: int, number: int, inputs: Arrays, outputs: Arrays
    ) -> tuple[Arrays, Arrays]:
        """What the graph after pass `number` takes, and what it must give."""
        for step in range(base + 1, number + 1):
            if history.is_changed[step]:
                one, program = history.passes[step - 1], history.programs[step]
                outputs = one.adapt_outputs(outputs, inputs, program)
                inputs = one.adapt_inputs(inputs, program)
        return inputs, outputs

    def _allowed(self, base: int, number: int) -> Contract:
        """What the passes in between promise together, or the tolerance that was given."""
        if self.tolerance is not None:
            return Contract.close(rtol=0.0, atol=self.tolerance)
        promises = [one.promise() for one in self.passes[base:number]]
        return Contract.close(
            rtol=sum(promise.rtol for promise in promises),
            atol=sum(promise.atol for promise in promises),
        )

    def values(self, program: Program) -> dict[str, np.ndarray]:
        """The parameters' values by name, each expression evaluated once."""
        found: dict[str, np.ndarray] = {}
        for name, weight in program.weights.items():
            key = weight.key
            if key not in self.known:
                self.known[key] = value(weight, self.probe.read)
            found[name] = self.known[key]
        return found


def bisect(
    probe: ProbeModel, passes: Sequence[PlannedPass], *, tolerance: float | None = None
) -> Bisection:
    """Find the first pass that leaves its contract.

    Args:
        probe: Traced programs that may be rewritten, and their weights.
        passes: In order.
        tolerance: Largest absolute difference from the traced graph, in place of the contracts.

    Raises:
        PassError: The order is wrong, or a pass leaves a graph that cannot be run.
    """
    check_order(passes)
    rewrites = [planned.rewrite for planned in passes]
    histories = [_history(program, rewrites) for program in probe.programs]
    search = _Search(rewrites, histories, probe, tolerance)
    base = 0
    for border in (*_rounding(search), len(passes) + 1):
        # Up to the pass before the border; then the border pass by itself.
        for first, last in ((base, border - 1), (border - 1, min(border, len(passes)))):
            bad = search.first_bad(first, last)
            if bad <= last:
                culprit = _culprit(search, passes[bad - 1], base=first, number=bad)
                return Bisection(culprit, tuple(search.runs))
        base = border
    return Bisection(None, tuple(search.runs))


def _history(program: Program, passes: Sequence[Pass]) -> _History:
    programs, is_changed, state = [program.copy()], [False], state_of(program)
    ran: list[Pass] = []
    for planned in passes:
        runs = program.phase in planned.phases
        one = planned.on_probe(program) if runs else planned
        ran.append(one)
        if runs:
            one.run(program)
            program.prune_parameters()
        before, state = state, state_of(program)
        is_changed.append(state != before)
        programs.append(program.copy() if state != before else programs[-1])
    return _History(tuple(ran), tuple(programs), tuple(is_changed))


def _rounding(search: _Search) -> list[int]:
    """Numbers of the passes that round."""
    return [
        number
        for number, one in enumerate(search.passes, start=1)
        if one.promise().kind == "rounds"
        or any(_rounds_weights(number, history, search) for history in search.histories)
    ]


def _rounds_weights(number: int, history: _History, search: _Search) -> bool:
    one = history.passes[number - 1]
    if type(one).adapt_weights is Pass.adapt_weights or not history.is_changed[number]:
        return False
    old = search.values(history.programs[number - 1])
    new = one.adapt_weights(old, history.programs[number])
    return not all(np.array_equal(new[name], array) for name, array in old.items())


def _culprit(search: _Search, planned: PlannedPass, *, base: int, number: int) -> Culprit:
    """The pass by itself, or, where that keeps its promise, with those that it tips over."""
    start, fault = number - 1, search.fault(number - 1, number)
    if fault is None:
        start, fault = base, search.fault(base, number)
    assert fault is not None, f"pass {number} was found at fault, and now it is not"
    history = next(one for one in search.histories if one.programs[0].phase == fault.phase)
    before, after = history.programs[start], history.programs[number]
    ran, weights = history.passes[number - 1], search.values(before)
    if start == number - 1:
        weights = ran.adapt_weights(weights, after)
    divergence = first_divergence(
        Run(before.model(), {**weights, **fault.inputs}),
        Run(after.model(), {**search.values(after), **fault.adapted}),
        wanted=fault.wanted,
    )
    culprit = replace(planned, rewrite=ran)
    return Culprit(culprit, fault.phase, fault.breach, divergence, before, fault.lengths)


def _session(program: Program) -> ReferenceSession:
    return ReferenceSession(program.model())
