"""A canonical attention over static caches becomes one node; anything that differs is named."""

import numpy as np
import onnx.inliner
import pytest
from attention_graph import CONTEXT, LENGTHS, TEXT, random_inputs, windowed
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import CONTEXT as TRACED_CONTEXT
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import FUSED_DOMAIN, Phase, Program
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FUSED_ATTENTION, FuseAttention
from passes.plan_kv_cache import PlanKVCache


def planned(text: str = TEXT) -> Program:
    program = program_from_text(text, context=CONTEXT)
    run_pass(FoldMask(), program)
    assert len(run_pass(PlanKVCache(), program).rewrites) == 2
    return program


def test_golden(golden: Golden):
    program = planned()
    report = run_pass(FuseAttention(), program)
    golden("fuse-attention.after.txt", text_of(program))
    assert report.rewrites == ("attn/FusedAttention",)
    assert report.skips == ()
    assert program.functions["FusedAttention"] is FUSED_ATTENTION


def test_a_second_run_rewrites_nothing():
    program = planned()
    run_pass(FuseAttention(), program)
    once = text_of(program)
    report = run_pass(FuseAttention(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


# Without a window, and with one that leaves rows of padding nothing to see.
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(("past", "valid"), LENGTHS)
def test_the_small_graph_gives_the_same_numbers(past: int, valid: int, window: int):
    program = planned(changed(TEXT, windowed(window)) if window else TEXT)
    inputs = random_inputs(program_from_text(TEXT), past=past, valid=valid)
    inputs = PlanKVCache().adapt_inputs(FoldMask().adapt_inputs(inputs, program), program)
    wanted = run_program(program, inputs)
    run_pass(FuseAttention(), program)
    found = run_program(program, inputs)
    (node,) = [node for node in program.graph.nodes if node.op == "FusedAttention"]
    assert node.attrs["window"] == window
    for name, value in wanted.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("phase", "past", "valid"),
    [
        ("prefill", 0, WINDOW),
        ("prefill", 4, 7),
        ("prefill", TRACED_CONTEXT - 1, 1),
        ("decode", 0, 1),
        ("decode", TRACED_CONTEXT - 1, 1),
    ],
)
@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_traced_models_give_the_same_numbers(
    traced_models: TracedModels, name: str, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs(name).programs[phase],
        traced_models.checkpoint(name),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    for rewriting in (FoldConstants(), FoldMask(), PlanKVCache()):
        run_pass(rewriting, program)
        inputs = rewriting.adapt_inputs(inputs, program)
    wanted = run_program(program, inputs, checkpoint)
    report = run_pass(FuseAttention(), program)
    assert report.rewrites == tuple(f"model.layers.{i}.self_attn/FusedAttention" for i in range(2))
    assert report.skips == ()
    assert "Softmax" not in {node.op for node in program.graph.nodes}
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6, err_msg=output)


def test_inlined_it_is_standard_operators_again():
    program = planned()
    run_pass(FuseAttention(), program)
    plain = onnx.inliner.inline_local_functions(program.model())
    assert {node.domain for node in plain.graph.node} == {""}
    assert [node.op_type for node in plain.graph.node].count("Softmax") == 1
    assert FUSED_ATTENTION.domain == FUSED_DOMAIN


def test_a_scale_of_one_axis_is_a_constant_too():
    program = planned(changed(TEXT, {"float scale = {0.5}": "float[1] scale = {0.5}"}))
    assert run_pass(FuseAttention(), program).rewrites == ("attn/FusedAttention",)
    node = next(node for node in program.graph.nodes if node.op == "FusedAttention")
    assert node.attrs["scale"] == 0.5


# -- what is declined

MUL = '["attn/Mul"] scores = Mul (products, scale)'
DECLINED = {
    "scaled by a quotient": (
        {MUL: MUL.replace("Mul (", "Div (")},
        "its scores are not Add(Mul(..), CausalMask)",
    ),
    "scaled by something computed": (
        {MUL: MUL.replace("scale)", "products)")},
        "attn/Mul does not scale by a constant",
    ),
    "scaled by several factors": (
        {
            MUL: MUL.replace("scale)", "scales)"),
            "int64 zero = {0}": "int64 zero = {0}, float[4, 1] scales = {1, 2, 3, 4}",
        },
        "attn/Mul does not scale by a constant",
    ),
    "no product": (
        {
            '["attn/MatMul"] products = MatMul (grouped, keys_t)': (
                '["attn/MatMul"] raw = MatMul (grouped, keys_t)\n'
                '["attn/Tanh"] products = Tanh (raw)'
            )
        },
        "attn/Mul does not scale a MatMul",
    ),
    "softmax over the queries": (
        {"Softmax <axis: int = -1>": "Softmax <axis: int = 3>"},
        "it is over axis 3, expected the last",
    ),
    "queries that are not grouped": (
        {
            '["attn/MatMul"] products = MatMul (grouped': (
                '["attn/Neg"] negated = Neg (grouped)\n["attn/MatMul"] products = MatMul (negated'
            )
        },
        "attn/MatMul does not read queries grouped as [1, K, H / K, T, d]",
    ),
    "keys that are changed": (
        {
            "MatMul (grouped, keys_t)": "MatMul (grouped, negated)",
            '["attn/MatMul"]': '["attn/Neg"] negated = Neg (keys_t)\n["attn/MatMul"]',
        },
        "attn/MatMul does not read its keys from a static cache",
    ),
    "values that are changed": (
        {
            "MatMul (weights, values_5d)": "MatMul (weights, negated)",
            '["attn/MatMul_1"]': '["attn/Neg"] negated = Neg (values_5d)\n["attn/MatMul_1"]',
        },
        "attn/MatMul_1 does not read its values from a static cache",
    ),
    "another order of heads": (
        {"perm: ints = [0, 2, 1, 3]> (heads)": "perm: ints = [0, 1, 2, 3]> (heads)"},
        "attn/MatMul_1 is not merged to [1, T, H * d]",
    ),
    "another shape at the end": (
        {"int64[3] merged_shape = {1, 4, 6}": "int64[3] merged_shape = {1, -1, 6}"},
        "attn/MatMul_1 is not merged to [1, T, H * d]",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_differs_is_declined(case: str):
    replaced, reason = DECLINED[case]
    program = planned(changed(TEXT, replaced))
    before = text_of(program)
    assert reasons(run_pass(FuseAttention(), program)) == {"attn/Softmax": reason}
    assert text_of(program) == before
    assert "FusedAttention" not in program.functions


def test_a_growing_cache_is_declined():
    program = program_from_text(TEXT)
    run_pass(FoldMask(), program)
    assert reasons(run_pass(FuseAttention(), program)) == {
        "attn/Softmax": "attn/MatMul does not read its keys from a static cache"
    }


def test_without_a_folded_mask_it_is_declined():
    assert reasons(run_pass(FuseAttention(), program_from_text(TEXT))) == {
        "attn/Softmax": "its scores are not Add(Mul(..), CausalMask)"
    }


def test_options():
    assert FuseAttention().required() == ("plan-kv-cache",)
    assert FuseAttention().promise() == Contract.close(rtol=1e-5, atol=1e-6)
