"""What reaches no output goes, and layout operators that undo or repeat each other."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import Golden, program_from_text, text_of
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import FUSED_DOMAIN, OPSET, Phase
from compiler.numerics.reference_run import run_model
from passes.eliminate_dead import EliminateDead
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.plan_kv_cache import PlanKVCache

BEFORE = (Path(__file__).parent / "golden" / "eliminate-dead.before.txt").read_text(
    encoding="utf-8"
)


def function(name: str, body: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(
        f'<domain: "{FUSED_DOMAIN}", opset_import: ["" : {OPSET}, "{FUSED_DOMAIN}" : 1]>\n'
        f"{name} (x) => (y) {{ {body} }}"
    )


def test_golden(golden: Golden):
    program = program_from_text(BEFORE)
    report = run_pass(EliminateDead(), program)
    golden("eliminate-dead.after.txt", text_of(program))
    assert report.rewrites == (
        *("dead/Add", "dead/Relu", "dead.weight"),
        *("l/Cast", "b/Transpose", "g/Reshape", "i/Cast", "j/Cast"),
    )
    assert report.skips == ()


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    run_pass(EliminateDead(), program)
    once = text_of(program)
    report = run_pass(EliminateDead(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_bits():
    random = np.random.default_rng(1)
    inputs = {
        "x": random.standard_normal((2, 3), dtype=np.float32),
        "narrow": random.standard_normal((2, 3)).astype(np.float16),
        "used.weight": random.standard_normal(3, dtype=np.float32),
    }
    program = program_from_text(BEFORE)
    wanted = run_program(program, {**inputs, "dead.weight": inputs["used.weight"]})
    run_pass(EliminateDead(), program)
    found = run_program(program, inputs)
    assert len(found) == 5
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(("phase", "past", "valid"), [("prefill", 3, 9), ("decode", 5, 1)])
def test_traced_models(traced_models: TracedModels, phase: Phase, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    for rewriting in (FoldConstants(), FoldMask(), PlanKVCache()):
        run_pass(rewriting, program)
        inputs = rewriting.adapt_inputs(inputs, program)
    wanted = run_program(program, inputs, checkpoint)
    report = run_pass(EliminateDead(), program)
    # The values' heads are split by one Reshape and merged to rows of the cache by another.
    assert report.rewrites == tuple(f"model.layers.{i}.self_attn/Concat_6/rows" for i in range(2))
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        assert found[output].tobytes() == value.tobytes(), output
    assert len(run_pass(FuseAttention(), program).rewrites) == 2


def test_a_transpose_of_a_transpose_that_does_not_cancel_is_one():
    text = (
        "main (float[2, 3, 4] x) => (float[4, 2, 3] y) {"
        '["a/Transpose"] t = Transpose <perm: ints = [1, 2, 0]> (x)\n'
        '["b/Transpose"] y = Transpose <perm: ints = [1, 2, 0]> (t) }'
    )
    program = program_from_text(text)
    x = np.random.default_rng(2).standard_normal((2, 3, 4), dtype=np.float32)
    wanted = run_program(program, {"x": x})["y"]
    assert run_pass(EliminateDead(), program).rewrites == ("b/Transpose",)
    (node,) = program.graph.nodes
    assert (node.name, node.attrs) == ("b/Transpose", {"perm": [2, 0, 1]})
    np.testing.assert_array_equal(run_program(program, {"x": x})["y"], wanted)


@pytest.mark.parametrize(
    ("narrow", "wide", "is_passed_over"),
    [("float16", 1, True), ("bfloat16", 1, True), ("float", 10, False), ("bfloat16", 10, False)],
)
def test_a_cast_that_rounds_is_kept(narrow: str, wide: int, is_passed_over: bool):
    kind = {"float16": 10, "bfloat16": 16, "float": 1}[narrow]
    text = (
        f"main ({narrow}[8] x) => (double[8] y) {{"
        f'["a/Cast"] wide = Cast <to: int = {wide}> (x)\n'
        f'["b/Cast"] back = Cast <to: int = {kind}> (wide)\n'
        '["c/Identity"] kept = Identity (back)\n["d/Cast"] y = Cast <to: int = 11> (kept) }'
    )
    program = program_from_text(text)
    values = np.random.default_rng(3).standard_normal(8)
    x = values.astype(
        {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}.get(narrow, np.float32)
    )
    wanted = run_model(program.model(), {"x": x})["y"]
    assert run_pass(EliminateDead(), program).rewrites == (("b/Cast",) if is_passed_over else ())
    assert run_model(program.model(), {"x": x})["y"].tobytes() == wanted.tobytes()


def test_a_function_stays_as_long_as_one_that_is_called_needs_it():
    program = program_from_text("main (float[2] x) => (float[2] y) { [n] y = Neg (x) }")
    program.functions = {
        "Outer": function("Outer", f"y = {FUSED_DOMAIN}.Inner (x)"),
        "Inner": function("Inner", "y = Relu (x)"),
        "Unused": function("Unused", "y = Relu (x)"),
    }
    (node,) = program.graph.nodes
    node.op, node.domain = "Outer", FUSED_DOMAIN
    assert run_pass(EliminateDead(), program).rewrites == ("Unused",)
    assert sorted(program.functions) == ["Inner", "Outer"]
    node.op, node.domain = "Neg", None
    assert run_pass(EliminateDead(), program).rewrites == ("Inner", "Outer")
    assert program.functions == {}


# -- what is declined


DECLINED = {
    "a Cast that makes an output": (
        "main (float[2] x) => (float[2] y) { [n] y = Cast <to: int = 1> (x) }",
        {"n": "its output is the graph's"},
    ),
    "a Reshape that copies an axis": (
        "main (float[2, 3] x) => (float[3, 2] y) < int64[2] a = {3, 2}, int64[2] b = {0, 2} > {"
        "[m] r = Reshape (x, a)\n[n] y = Reshape (r, b) }",
        {"n": "its shape [0, 2] copies an axis of m"},
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_is_declined(case: str):
    text, wanted = DECLINED[case]
    program = program_from_text(text)
    before = text_of(program)
    report = run_pass(EliminateDead(), program)
    assert {skip.node: skip.reason for skip in report.skips} == wanted
    assert report.rewrites == ()
    assert text_of(program) == before


def test_what_is_not_known_is_left():
    text = (
        "main (float[2, 3] x, int64[2] shape) => (float[3, 2] y, float[N, M] z) {"
        "[a] t = Transpose (x)\n[b] u = Transpose (t)\n"
        "[c] y = Transpose <perm: ints = [1, 0]> (u)\n"
        "[d] r = Reshape (x, shape)\n[e] z = Reshape (r, shape) }"
    )
    report = run_pass(EliminateDead(), program_from_text(text))
    assert (report.rewrites, report.skips) == ((), ())


def test_options():
    assert EliminateDead().promise() == Contract.exact()
    assert EliminateDead().required() == ()
    assert EliminateDead.after == ("fold-constants",)
    assert EliminateDead.phases == ("prefill", "decode")
