"""q, k and v of a layer become one product, and their biases one bias."""

from pathlib import Path

import numpy as np
import pytest
from program_runs import (
    random_parameters,
    reasons,
    run_pass,
    run_program,
    traced_inputs,
)
from program_text import Golden, changed, linears_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase
from compiler.contracts.weights import cast
from passes.fuse_qkv import FuseQKV
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "fuse-qkv.before.txt").read_text(encoding="utf-8")
SPLITS = tuple(f"layers.{layer}.self_attn.qkv_proj/Split" for layer in range(2))
X = np.random.default_rng(5).standard_normal((1, 4, 8), dtype=np.float32)


def test_golden(golden: Golden):
    program = linears_from_text(BEFORE)
    report = run_pass(FuseQKV(), program)
    golden("fuse-qkv.after.txt", text_of(program))
    assert report.rewrites == SPLITS
    assert report.skips == ()


def test_a_second_run_rewrites_nothing():
    program = linears_from_text(BEFORE)
    run_pass(FuseQKV(), program)
    once = text_of(program)
    report = run_pass(FuseQKV(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_numbers():
    program = linears_from_text(BEFORE)
    wanted = run_program(program, {"x": X, **random_parameters(program)})
    run_pass(FuseQKV(), program)
    found = run_program(program, {"x": X, **random_parameters(program)})
    assert set(found) == {"y", "k0", "v0", "k1", "v1"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_projections_without_module_names_are_taken_in_the_graph_s_order():
    program = linears_from_text(BEFORE)
    wanted = run_program(program, {"x": X, **random_parameters(program)})
    for index, node in enumerate(program.graph.nodes):
        node.name = f"n{index}"
    report = run_pass(FuseQKV(), program)
    assert report.rewrites == ("n0.qkv_proj/Split", "n7.qkv_proj/Split")
    assert program.weights["n0.qkv_proj.bias"].sources() == tuple(
        f"layers.0.self_attn.{part}_proj.bias" for part in "qvk"
    )
    found = run_program(program, {"x": X, **random_parameters(program)})
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["mha", "gqa", "llama"])
@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, WINDOW), ("prefill", 5, 4), ("decode", 8, 1)]
)
def test_traced_models(traced_models: TracedModels, name: str, phase: Phase, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs(name).programs[phase],
        traced_models.checkpoint(name),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    signature = program.inputs(), program.outputs()
    report = run_pass(FuseQKV(), program)
    assert report.rewrites == tuple(f"model.layers.{i}.self_attn.qkv_proj/Split" for i in range(2))
    assert report.skips == ()
    assert (program.inputs(), program.outputs()) == signature
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_joined_weight_is_stored_as_rows_of_the_checkpoint(traced_models: TracedModels, dtype):
    program = traced_models.programs("gqa").programs["decode"]  # its checkpoint is bfloat16
    run_pass(FuseQKV(), program)
    run_pass(StoreWeights(dtype=dtype), program)
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    wide = [name if dtype == "bfloat16" else f"cast({name}, float32)" for name in names]
    joined = program.weights["model.layers.1.self_attn.qkv_proj.weight"]
    assert joined.key == f"concat({', '.join(wide)})"
    assert joined.shape == (56 + 8 + 8, 56)


# -- what is declined


DECLINED = {
    "k reads another tensor": (
        {
            'k0_raw = MatMul (x, "': 'k0_raw = MatMul (x2, "',
            "(float[1, 4, 8] x,": "(float[1, 4, 8] x, float[1, 4, 8] x2,",
        },
        {
            "layers.0.self_attn.q_proj/MatMul": "x is not read by k_proj",
            "layers.0.self_attn.k_proj/MatMul": "x2 is not read by q_proj and v_proj",
        },
    ),
    "a weight is read twice": (
        {
            "float[1, 4, 8] y,": "float[1, 4, 8] y, float[8, 4] other,",
            '["layers.0/Tanh"]': '["other/Neg"] other = Neg ("layers.0.self_attn.k_proj.weight")\n'
            '["layers.0/Tanh"]',
        },
        {
            "layers.0.self_attn.q_proj/MatMul": "layers.0.self_attn.k_proj.weight is read by "
            "['layers.0.self_attn.k_proj/MatMul', 'other/Neg']"
        },
    ),
    "one has no bias": (
        {
            "k0_raw = MatMul": "k0 = MatMul",
            '["layers.0.self_attn.k_proj/Add"] k0 = Add (k0_raw,': '["other/Neg"] unread = Neg (',
        },
        {
            "layers.0.self_attn.q_proj/MatMul": "of 3 products, a bias is added to "
            "layers.0.self_attn.q_proj/MatMul and layers.0.self_attn.v_proj/MatMul alone"
        },
    ),
    "a product is an output without its bias": (
        {"float[1, 4, 4] v1)": "float[1, 4, 4] v1, float[1, 4, 4] v0_raw)"},
        {
            "layers.0.self_attn.q_proj/MatMul": "layers.0.self_attn.v_proj/MatMul makes an output "
            "without its bias"
        },
    ),
    "a product is read beside its bias": (
        {"Tanh (q0_sum)": "Sub (q0_sum, q0)"},
        {
            "layers.0.self_attn.q_proj/MatMul": "layers.0.self_attn.q_proj/MatMul is read by "
            "['layers.0.self_attn.q_proj/Add', 'layers.0/Tanh'] beside its bias"
        },
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_only_looks_like_it_is_declined(case: str):
    replaced, wanted = DECLINED[case]
    program = linears_from_text(changed(BEFORE, replaced))
    report = run_pass(FuseQKV(), program)
    assert {skip.node: skip.reason for skip in report.skips} == wanted
    assert report.rewrites == SPLITS[1:]


def test_a_vector_that_is_no_bias_is_added_behind_the_split():
    biases = {part: f'"layers.0.self_attn.{part}_proj.bias"' for part in "qkv"}
    single = {
        f"float[{8 if part == 'q' else 4}] {bias}": f"float[1] {bias}"
        for part, bias in biases.items()
    }
    text = changed(BEFORE, single)
    program = linears_from_text(text)
    wanted = run_program(program, {"x": X, **random_parameters(program)})
    assert run_pass(FuseQKV(), program).rewrites == SPLITS
    assert "layers.0.self_attn.qkv_proj.bias" not in program.weights
    found = run_program(program, {"x": X, **random_parameters(program)})
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_weights_of_several_dtypes_are_declined():
    program = linears_from_text(BEFORE)
    name = "layers.1.self_attn.v_proj.weight"
    program.weights[name] = cast(program.weights[name], "float16")
    report = FuseQKV().run(program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        "layers.1.self_attn.q_proj/MatMul": "their weights are float16 and float32"
    }
    assert report.rewrites == SPLITS[:1]


def test_stored_weights_are_declined():
    program = linears_from_text(BEFORE)
    run_pass(StoreWeights(), program)
    before = text_of(program)
    assert reasons(run_pass(FuseQKV(), program)) == {
        f"layers.{layer}.self_attn.q_proj/MatMul": "the weight of "
        f"layers.{layer}.self_attn.q_proj/MatMul is stored otherwise than [in, out]"
        for layer in range(2)
    }
    assert text_of(program) == before


def test_options():
    assert FuseQKV().promise() == Contract.close(rtol=1e-5, atol=1e-5)
    assert FuseQKV().required() == ("keep-qkv-bias",)
    assert FuseQKV.after == ("fold-constants",)
    assert "fuse-qkv" in StoreWeights.after
    assert FuseQKV.phases == ("prefill", "decode")
