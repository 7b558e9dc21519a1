"""Each way in which a pass can be wrong is found, and named as what it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from compiler.contracts.errors import PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Arrays, Contract, Pass, PassReport, Skip
from compiler.contracts.program import Program, tidy
from compiler.contracts.weights import cast
from compiler.pass_kit import Case, Finding, Outcome, case_of, check_pass, program_from_text

TEXT = """
main (float[1, 4, 4] x, float[4, 2] "head.weight", float[2] "head.bias") => (float[1, 4, 2] y)
{
  ["head/MatMul"] product = MatMul (x, "head.weight")
  ["head/Add"] total = Add (product, "head.bias")
  ["head/Relu"] y = Relu (total)
}
"""


def node(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def case() -> Case:
    return case_of(program_from_text(TEXT))


@dataclass(frozen=True)
class Edits(Pass):
    """Does what it is told, and says what it is told."""

    name: ClassVar = "edit-graph"
    contract: ClassVar = Contract.exact()
    edit: Callable[[Program], PassReport]

    def run(self, program: Program) -> PassReport:
        return self.edit(program)


@dataclass(frozen=True)
class Reshapes(Edits):
    """One that may change the signature."""

    changes_signature: ClassVar = True


def found(rewriting: Pass) -> Finding:
    finding = check_pass(rewriting, case()).finding
    assert finding is not None
    return finding


def swaps(program: Program) -> PassReport:
    """Add(a, b) -> Add(b, a), which is sound, once."""
    add = node(program, "head/Add")
    if add.inputs[0].name != "product":
        return PassReport(skips=(Skip(add.name, "its product is the second"),))
    add.inputs = [add.inputs[1], add.inputs[0]]
    return PassReport((add.name,))


def test_a_sound_pass_has_no_finding():
    whole = case()
    before = whole.program.model().SerializeToString()
    outcome = check_pass(Edits(swaps), whole)
    assert outcome == Outcome(rewrites=("head/Add",))
    assert whole.program.model().SerializeToString() == before


def test_a_refusal_is_no_fault():
    def refuse(program: Program) -> PassReport:
        raise PassError("there is no mask")

    assert check_pass(Edits(refuse), case()) == Outcome(refusal="there is no mask")


def test_an_exception_is_named_with_its_line():
    def fail(program: Program) -> PassReport:
        return PassReport((program.graph.nodes[7].name,))

    finding = found(Edits(fail))
    assert (finding.check, finding.kind) == ("run", "run: IndexError")
    assert finding.said.startswith("run raises IndexError: list index out of range (test_checks.py")


# -- the graph


def unnamed(program: Program) -> PassReport:
    node(program, "head/Relu").name = ""
    return PassReport(("y",))


def twice(program: Program) -> PassReport:
    node(program, "head/Relu").name = "head/Add"
    return PassReport(("y",))


def invalid(program: Program) -> PassReport:
    node(program, "head/Relu").op = "Rellu"
    return PassReport(("y",))


def drops_an_input(program: Program) -> PassReport:
    program.graph.inputs = [tensor for tensor in program.graph.inputs if tensor.name != "x"]
    return PassReport(("y",))


def widens_the_output(program: Program) -> PassReport:
    program.graph.outputs[0].shape = [1, 4, "wide"]
    return PassReport(("y",))


def lies_of_a_rewrite(program: Program) -> PassReport:
    return PassReport(("head/Relu",))


def is_silent(program: Program) -> PassReport:
    swaps(program)
    return PassReport()


def changes_a_weight(program: Program) -> PassReport:
    program.weights["head.weight"] = cast(
        cast(program.weights["head.weight"], "float16"), "float32"
    )
    return PassReport()


def misnames(program: Program) -> PassReport:
    swaps(program)
    return PassReport(("head/Sum",))


@pytest.mark.parametrize(
    ("edit", "check", "said"),
    [
        (unnamed, "structure", "a Relu node has no name"),
        (twice, "structure", "several nodes are called 'head/Add'"),
        (invalid, "structure", "No Op registered for Rellu"),
        (drops_an_input, "structure", "Nodes in a graph must be "),
        (
            widens_the_output,
            "signature",
            "changed the outputs without declaring it: ['y [1, 4, 2]'] became",
        ),
        (lies_of_a_rewrite, "report", "reports 1 rewrites, but the graph is unchanged"),
        (is_silent, "report", "reports no rewrite, but the graph changed"),
        (
            changes_a_weight,
            "report",
            "reports no rewrite, but weights, aliases or logits_of changed",
        ),
        (misnames, "report", "reports 'head/Sum', which no node or tensor is called"),
    ],
)
def test_a_graph_that_is_wrong(edit: Callable[[Program], PassReport], check: str, said: str):
    finding = found(Edits(edit))
    assert (finding.check, finding.said[: len(said)]) == (check, said)


# -- the numbers


def loses_the_bias(program: Program) -> PassReport:
    if not any(one.name == "head/Add" for one in program.graph.nodes):
        return PassReport()
    relu, add = node(program, "head/Relu"), node(program, "head/Add")
    relu.inputs = [add.inputs[0]]
    tidy(program.graph)
    return PassReport(("head/Add",))


def divides_by_zero(program: Program) -> PassReport:
    relu = node(program, "head/Relu")
    zero = gs.Constant("zero", np.zeros(2, np.float32))
    relu.op, relu.inputs = "Div", [relu.inputs[0], zero]
    return PassReport(("head/Relu",))


def narrows(program: Program) -> PassReport:
    """An output of another shape, declared; `adapt_outputs` says nothing of it."""
    output = program.graph.outputs[0]
    relu = node(program, "head/Relu")
    axes = gs.Constant("axes", np.array([0], np.int64))
    wide = gs.Variable("wide")
    relu.outputs = [wide]
    program.graph.nodes.append(gs.Node("Squeeze", "head/Squeeze", None, [wide, axes], [output]))
    output.shape = [4, 2]
    return PassReport(("head/Squeeze",))


def renames(program: Program) -> PassReport:
    program.graph.inputs[0].name = "hidden"
    return PassReport(("head/MatMul",))


def test_numbers_that_leave_the_contract():
    finding = found(Edits(loses_the_bias))
    assert (finding.check, finding.kind) == ("numbers", "value")
    assert finding.said.startswith("promises exact, but with 0 past and 4 valid tokens y[0, ")
    assert "; in float64 it is " in finding.said
    finding = found(Edits(divides_by_zero))
    assert (finding.check, finding.kind) == ("numbers", "non-finite")
    finding = found(Reshapes(narrows))
    assert (finding.check, finding.kind) == ("numbers", "shape")


def test_a_tolerance_is_the_contracts():
    @dataclass(frozen=True)
    class Loose(Edits):
        contract: ClassVar = Contract.close(rtol=0.0, atol=10.0)

    outcome = check_pass(Loose(loses_the_bias), case())
    assert outcome == Outcome(rewrites=("head/Add",))


def test_what_the_pass_does_not_adapt_is_named():
    finding = found(Reshapes(renames))
    assert finding.said == "adapt_inputs says nothing of hidden, which the new graph has"


def test_adapters_leave_their_arguments_alone():
    @dataclass(frozen=True)
    class Overwrites(Edits):
        def adapt_inputs(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
            old["x"][:] = 0
            return dict(old)

    finding = found(Overwrites(swaps))
    assert finding.check == "run"
    assert "ValueError: assignment destination is read-only" in finding.said


def test_weights_that_a_pass_rounds_are_rounded_before_it():
    @dataclass(frozen=True)
    class Halves(Edits):
        def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
            return {**old, "head.bias": np.zeros(2, np.float32)}

    assert check_pass(Halves(loses_the_bias), case()).finding is None


# -- what holds for longer than a run


class ThereIsAnAdd:
    name = "keep-add"

    def violations(self, program: Program) -> tuple[str, ...]:
        has_one = any(one.op == "Add" for one in program.graph.nodes)
        return () if has_one else (f"the {program.phase} graph has no Add",)


@dataclass(frozen=True)
class KeepsAdd(Pass):
    name: ClassVar = "keep-add"

    def run(self, program: Program) -> PassReport:
        return PassReport()

    def invariants(self, program: Program) -> tuple[Invariant, ...]:
        return (ThereIsAnAdd(),)


def subtracts(program: Program) -> PassReport:
    """x + b -> x - (-b): the same to the bit."""
    add = next((one for one in program.graph.nodes if one.name == "head/Add"), None)
    if add is None or add.op == "Sub":
        return PassReport()
    opposite = gs.Variable("head/Neg")
    program.graph.nodes.append(gs.Node("Neg", "head/Neg", None, [add.inputs[1]], [opposite]))
    add.op, add.inputs = "Sub", [add.inputs[0], opposite]
    tidy(program.graph)
    return PassReport(("head/Neg",))


def test_an_invariant_of_an_earlier_pass_is_held():
    assert check_pass(Edits(subtracts), case()).finding is None
    one = case()
    guarded = Case(one.program, one.tensors, one.lengths, one.vocabulary, one.seed, (KeepsAdd(),))
    finding = check_pass(Edits(subtracts), guarded).finding
    assert finding is not None
    assert finding.check == "invariants"
    assert finding.said == "breaks 'keep-add': the prefill graph has no Add"
    assert check_pass(KeepsAdd(), case()) == Outcome(has_invariants=True)


def test_a_second_run_changes_nothing():
    def again(program: Program) -> PassReport:
        add = node(program, "head/Add")
        add.inputs = [add.inputs[1], add.inputs[0]]
        return PassReport((add.name,))

    finding = found(Edits(again))
    assert (finding.check, finding.said) == ("repeat", "a second run rewrites head/Add again")


def test_equal_graphs_are_rewritten_equally():
    runs: list[int] = []

    def remembers(program: Program) -> PassReport:
        runs.append(len(runs))
        relu = node(program, "head/Relu")
        relu.name = f"head/Relu_{len(runs)}"
        return PassReport((relu.name,))

    finding = found(Edits(remembers))
    assert (finding.check, finding.said) == ("determinism", "two runs on equal graphs differ")


# -- passes that round


def narrows_the_sum(program: Program) -> PassReport:
    """Add(x, b) in float16."""
    add = node(program, "head/Add")
    if add.inputs[0].name.startswith("narrow"):
        return PassReport()
    total = add.outputs[0]
    narrow = [gs.Variable(f"narrow.{index}") for index in range(3)]
    for index, tensor in enumerate(list(add.inputs)):
        program.graph.nodes.append(
            gs.Node("Cast", f"narrow.{index}", {"to": 10}, [tensor], [narrow[index]])
        )
    add.inputs, add.outputs = narrow[:2], narrow[2:]
    program.graph.nodes.append(gs.Node("Cast", "widen", {"to": 1}, narrow[2:], [total]))
    tidy(program.graph)
    return PassReport((add.name,))


def narrows_and_loses(program: Program) -> PassReport:
    """The same, with a thousandth of the bias gone: less than rounding is allowed to cost."""
    report = narrows_the_sum(program)
    if report.rewrites:
        add = node(program, "head/Add")
        factor = gs.Constant("factor", np.array(0.999, np.float16))
        less = gs.Variable("less")
        program.graph.nodes.append(gs.Node("Mul", "less", None, [add.inputs[1], factor], [less]))
        add.inputs = [add.inputs[0], less]
        tidy(program.graph)
    return report


@dataclass(frozen=True)
class Rounds(Edits):
    contract: ClassVar = Contract.rounds(atol=0.01)


def test_what_is_lost_under_the_rounding_shows_in_float64():
    assert check_pass(Rounds(narrows_the_sum), case()).finding is None
    finding = found(Rounds(narrows_and_loses))
    assert (finding.check, finding.kind) == ("numbers", "value")
    assert " in float64, too, y[0, " in finding.said
