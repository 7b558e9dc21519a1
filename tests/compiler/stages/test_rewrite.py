"""The driver: order before anything runs, and everything checked after each pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from program_text import program_from_text, text_of

from compiler.contracts.errors import CompilerErrors, PassError
from compiler.contracts.invariants import Invariant
from compiler.contracts.pass_base import Pass, PassRecord, PassReport, Skip
from compiler.contracts.program import Phase, Program, ProgramSet
from compiler.contracts.progress import Progress
from compiler.contracts.weights import concat, cut, source
from compiler.pass_order import PlannedPass, check_order
from compiler.stages.rewrite import rewrite, snapshot_name

TEXT = """
main (float[1, 4] x, float[4, 2] "lm_head.weight", float[2] "lm_head.bias") => (float[1, 2] y)
{
  ["lm_head/MatMul"] product = MatMul (x, "lm_head.weight")
  ["lm_head/Add"] total = Add (product, "lm_head.bias")
  ["lm_head/Relu"] y = Relu (total)
}
"""
Edit = Callable[[Program], None]


def programs() -> ProgramSet:
    return ProgramSet(
        {
            "prefill": program_from_text(TEXT, phase="prefill"),
            "decode": program_from_text(TEXT, phase="decode", tokens=1),
        }
    )


def _pass(
    name: str,
    *,
    requires: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    phases: tuple[Phase, ...] = ("prefill", "decode"),
    edit: Edit | None = None,
    report: PassReport | None = None,
    is_changing: bool = False,
    invariant: Invariant | None = None,
) -> PlannedPass:
    """A stand-in that edits the graph and reports whatever it is told to."""

    @dataclass(frozen=True)
    class StandIn(Pass):
        changes_signature: ClassVar = is_changing

        def run(self, program: Program) -> PassReport:
            if edit is not None:
                edit(program)
            return report or PassReport()

        def invariants(self, program: Program) -> tuple[Invariant, ...]:
            del program
            return (invariant,) if invariant is not None else ()

    StandIn.name, StandIn.requires, StandIn.after, StandIn.phases = name, requires, after, phases
    return PlannedPass(StandIn(), f"model.yaml: passes.{name}")


def _refusal(*passes: PlannedPass) -> PassError:
    with pytest.raises(PassError) as caught:
        rewrite(programs(), passes)
    return caught.value


def _node(program: Program, name: str) -> gs.Node:
    return next(node for node in program.graph.nodes if node.name == name)


def _append_neg(program: Program, name: str = "lm_head/Neg") -> None:
    """y = Neg(Relu(..)): a rewrite that is valid."""
    relu = _node(program, "lm_head/Relu")
    y = relu.outputs[0]
    relu.outputs[0] = gs.Variable("relu", np.dtype(np.float32), [1, 2])
    program.graph.nodes.append(gs.Node("Neg", name, inputs=[relu.outputs[0]], outputs=[y]))


DID_ONE = PassReport(rewrites=("lm_head/MatMul",))


# -- order


def test_an_order_that_holds():
    check_order([_pass("a"), _pass("b", requires=("a",)), _pass("c", after=("a", "absent"))])
    check_order([])
    check_order([_pass("a"), _pass("b", after=("a",)), _pass("a")])


def test_what_is_required_and_absent():
    with pytest.raises(PassError) as caught:
        check_order([_pass("fuse-qkv", requires=("keep-qkv-bias",))])
    error = caught.value
    assert error.message == "pass 'fuse-qkv' needs 'keep-qkv-bias' before it"
    assert error.where == "model.yaml: passes.fuse-qkv"
    assert error.hint == "put 'keep-qkv-bias' above 'fuse-qkv'"
    assert error.code == "pass-order"


def test_what_must_stand_after():
    with pytest.raises(PassError) as caught:
        check_order([_pass("slice", after=("fold",)), _pass("fold")])
    error = caught.value
    assert error.message == "pass 'slice' must stand after 'fold'"
    assert error.where == "model.yaml: passes.slice"
    assert error.hint == "move 'slice' below 'fold'"


def test_every_violation_at_once():
    with pytest.raises(CompilerErrors) as caught:
        check_order(
            [
                _pass("one", requires=("three", "four")),
                _pass("two", after=("three",)),
                _pass("three"),
            ]
        )
    assert [str(error).splitlines()[0] for error in caught.value.errors] == [
        "model.yaml: passes.one: pass 'one' needs 'three' before it",
        "model.yaml: passes.one: pass 'one' needs 'four' before it",
        "model.yaml: passes.two: pass 'two' must stand after 'three'",
    ]


def test_one_violation_for_what_is_required_and_after():
    with pytest.raises(PassError) as caught:
        check_order([_pass("b", requires=("a",), after=("a",)), _pass("a")])
    assert caught.value.message == "pass 'b' needs 'a' before it"


def test_the_order_is_checked_before_anything_runs():
    ran: list[str] = []
    with pytest.raises(PassError, match="needs 'absent'"):
        rewrite(
            programs(),
            [
                _pass("first", edit=lambda program: ran.append(program.phase)),
                _pass("second", requires=("absent",)),
            ],
        )
    assert ran == []


# -- records and snapshots


def test_records_and_snapshots_of_each_phase():
    skipped = PassReport(skips=(Skip("lm_head/Relu", "it is no Tanh"),))
    given = programs()
    done = rewrite(
        given,
        [
            _pass("append-neg", edit=_append_neg, report=DID_ONE),
            _pass("find-tanh", phases=("decode",), report=skipped),
        ],
    )
    assert done.records == (
        PassRecord("append-neg", "prefill", 1, ()),
        PassRecord("append-neg", "decode", 1, ()),
        PassRecord("find-tanh", "decode", 0, skipped.skips),
    )
    assert list(done.snapshots) == [
        "prefill/00-trace.onnx",
        "decode/00-trace.onnx",
        "prefill/01-append-neg.onnx",
        "decode/01-append-neg.onnx",
        "decode/02-find-tanh.onnx",
    ]
    assert done.programs is given
    before = onnx.load_from_string(done.snapshots["prefill/00-trace.onnx"])
    after = onnx.load_from_string(done.snapshots["prefill/01-append-neg.onnx"])
    assert [node.op_type for node in before.graph.node] == ["MatMul", "Add", "Relu"]
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add", "Relu", "Neg"]
    assert done.snapshots["decode/02-find-tanh.onnx"] == done.snapshots["decode/01-append-neg.onnx"]


def test_a_pass_runs_in_its_phases_in_order():
    ran: list[tuple[str, str]] = []
    rewrite(
        ProgramSet(dict(reversed(programs().programs.items()))),
        [
            _pass("a", edit=lambda program: ran.append(("a", program.phase))),
            _pass("b", phases=("prefill",), edit=lambda program: ran.append(("b", program.phase))),
        ],
    )
    assert ran == [("a", "prefill"), ("a", "decode"), ("b", "prefill")]


def test_progress_counts_passes():
    class Counting(Progress):
        def __init__(self) -> None:
            self.updates: list[tuple[int, int, str]] = []

        def update(self, done: int, total: int, unit: str) -> None:
            self.updates.append((done, total, unit))

    progress = Counting()
    rewrite(programs(), [_pass("a"), _pass("b", phases=("decode",))], progress=progress)
    assert progress.updates == [(1, 2, "passes"), (2, 2, "passes")]


def test_snapshot_names_sort_by_number():
    assert snapshot_name("prefill", 3, "fold-mask") == "prefill/03-fold-mask.onnx"


def test_unread_parameters_leave_with_the_pass():
    def drop_bias(program: Program) -> None:
        add, relu = _node(program, "lm_head/Add"), _node(program, "lm_head/Relu")
        relu.inputs[0] = add.inputs[0]
        program.graph.cleanup()

    done = rewrite(programs(), [_pass("a", edit=drop_bias, report=DID_ONE)])
    assert all(set(program.weights) == {"lm_head.weight"} for program in done.programs)


# -- what a pass may not do


def test_what_is_refused_says_where_and_what_to_do():
    error = _refusal(_pass("lying", report=DID_ONE))
    assert (
        error.message == "pass 'lying' on prefill: reports 1 rewrites, but the graph is unchanged"
    )
    assert error.where == "model.yaml: passes.lying"
    assert error.hint == "the pass is at fault: report it to its author"


def test_a_change_that_is_not_reported():
    error = _refusal(_pass("silent", phases=("decode",), edit=_append_neg))
    assert error.message == "pass 'silent' on decode: reports no rewrite, but the graph changed"


def test_a_duplicate_name():
    error = _refusal(_pass("double", edit=lambda p: _append_neg(p, "lm_head/Relu"), report=DID_ONE))
    assert error.message == (
        "pass 'double' on prefill: left an invalid graph: several nodes are called 'lm_head/Relu'"
    )


def test_a_node_without_a_name():
    error = _refusal(_pass("shy", edit=lambda program: _append_neg(program, ""), report=DID_ONE))
    assert error.message == "pass 'shy' on prefill: left an invalid graph: a Neg node has no name"


def _wrong_operator(program: Program) -> None:
    _node(program, "lm_head/Relu").op = "NoSuchOperator"


def _wrong_shape(program: Program) -> None:
    node = _node(program, "lm_head/Add")
    node.inputs[1] = gs.Constant("five", np.zeros(5, np.float32))


def _missing_input(program: Program) -> None:
    _node(program, "lm_head/Relu").inputs[0] = gs.Variable("nobody", np.dtype(np.float32), [1, 2])


def _cycle(program: Program) -> None:
    add, relu = _node(program, "lm_head/Add"), _node(program, "lm_head/Relu")
    add.inputs[1] = relu.outputs[0]


def _lost_parameter(program: Program) -> None:
    program.weights["lm_head.scale"] = source("lm_head.scale", (2,), "float32")
    program.prune_parameters = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_wrong_operator, ("NoSuchOperator",)),
        (_wrong_shape, ("lm_head/Add", "Incompatible dimensions")),
        (_missing_input, ("nobody", "lm_head/Relu")),
        (_cycle, ("lm_head/Add",)),
        (
            _lost_parameter,
            ("parameter 'lm_head.scale' is in the weight table and not in the graph",),
        ),
    ],
)
def test_an_invalid_graph_names_pass_and_node(edit: Edit, words: tuple[str, ...]):
    error = _refusal(_pass("breaking", edit=edit, report=DID_ONE))
    assert error.message.startswith("pass 'breaking' on prefill: left an invalid graph: ")
    for word in words:
        assert word in error.message
    assert "\n" not in error.message


def _widen_output(program: Program) -> None:
    _node(program, "lm_head/Relu").outputs[0].shape = [1, "n"]


def _new_input(program: Program) -> None:
    program.graph.inputs.append(gs.Variable("extra", np.dtype(np.int64), [1]))


@pytest.mark.parametrize(
    ("edit", "side", "before", "after"),
    [
        (_widen_output, "outputs", "['y [1, 2]']", """["y [1, 'n']"]"""),
        (_new_input, "inputs", "[]", "['extra [1]']"),
    ],
)
def test_a_signature_that_changes_undeclared(edit: Edit, side: str, before: str, after: str):
    error = _refusal(_pass("widen", edit=edit, report=DID_ONE))
    assert error.message == (
        f"pass 'widen' on prefill: changed the {side} without declaring it: {before} became {after}"
    )


def test_a_change_of_weights_alone_has_to_be_reported():
    def edit(program: Program) -> None:
        name = "lm_head.bias"
        program.weights[name] = cut(concat([program.weights[name]] * 2), 0, 1, 3)

    error = _refusal(_pass("silent", edit=edit))
    assert error.message == (
        "pass 'silent' on prefill: reports no rewrite, but weights, aliases or logits_of changed"
    )


def test_a_declared_change_of_signature_passes():
    done = rewrite(
        programs(), [_pass("widen", edit=_widen_output, report=DID_ONE, is_changing=True)]
    )
    assert all(program.outputs()[0].shape == (1, "n") for program in done.programs)


# -- invariants


@dataclass(frozen=True)
class KeepsRelu:
    name: str = "keep-relu"

    def violations(self, program: Program) -> tuple[str, ...]:
        if any(node.op == "Relu" for node in program.graph.nodes):
            return ()
        return (f"there is no Relu in {program.phase}", "and none of its kin")


def _replace_relu(program: Program) -> None:
    _node(program, "lm_head/Relu").op = "Tanh"


def test_an_invariant_holds_to_the_end():
    error = _refusal(
        _pass("keep-relu", phases=("decode",), invariant=KeepsRelu()),
        _pass("append-neg", edit=_append_neg, report=DID_ONE),
        _pass("use-tanh", edit=_replace_relu, report=DID_ONE),
    )
    # Registered for decode alone: prefill went through.
    assert error.message == (
        "pass 'use-tanh' on decode: broke 'keep-relu': "
        "there is no Relu in decode; and none of its kin"
    )
    assert error.where == "model.yaml: passes.use-tanh"


def test_an_invariant_binds_only_what_comes_after():
    done = rewrite(
        programs(),
        [
            _pass("use-tanh", edit=_replace_relu, report=DID_ONE),
            _pass("append-neg", edit=_append_neg, report=DID_ONE),
        ],
    )
    assert len(done.records) == 4


def test_an_invariant_that_does_not_hold_at_first():
    error = _refusal(
        _pass("use-tanh", edit=_replace_relu, report=DID_ONE),
        _pass("keep-relu", invariant=KeepsRelu()),
    )
    assert error.message.startswith("pass 'keep-relu' on prefill: broke 'keep-relu': ")


def test_a_traced_graph_that_is_invalid_is_our_bug():
    given = programs()
    _wrong_operator(given.programs["decode"])
    with pytest.raises(
        AssertionError, match=r"the traced decode graph is invalid: .*NoSuchOperator"
    ):
        rewrite(given, [])


def test_nothing_to_run_changes_nothing():
    given = programs()
    before = [text_of(program) for program in given]
    done = rewrite(given, [])
    assert [text_of(program) for program in done.programs] == before
    assert done.records == ()
    assert list(done.snapshots) == ["prefill/00-trace.onnx", "decode/00-trace.onnx"]
