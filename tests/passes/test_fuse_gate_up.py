"""gate and up of a layer become one product."""

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
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_silu_mul import FuseSiluMul
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "fuse-gate-up.before.txt").read_text(encoding="utf-8")
SPLITS = tuple(f"layers.{layer}.mlp.gate_up_proj/Split" for layer in range(2))
X = np.random.default_rng(6).standard_normal((1, 4, 6), dtype=np.float32)


def test_golden(golden: Golden):
    program = linears_from_text(BEFORE)
    report = run_pass(FuseGateUp(), program)
    golden("fuse-gate-up.after.txt", text_of(program))
    assert report.rewrites == SPLITS
    assert report.skips == ()


@pytest.mark.parametrize("is_fused_first", [False, True])
def test_a_second_run_rewrites_nothing(is_fused_first: bool):
    program = linears_from_text(BEFORE)
    if is_fused_first:
        run_pass(FuseSiluMul(), program)
    assert run_pass(FuseGateUp(), program).rewrites == SPLITS
    once = text_of(program)
    report = run_pass(FuseGateUp(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_numbers():
    program = linears_from_text(BEFORE)
    wanted = run_program(program, {"x": X, **random_parameters(program)})["y"]
    run_pass(FuseGateUp(), program)
    assert program.weights["layers.1.mlp.gate_up_proj.bias"].sources() == (
        "layers.1.mlp.gate_proj.bias",
        "layers.1.mlp.up_proj.bias",
    )
    found = run_program(program, {"x": X, **random_parameters(program)})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, WINDOW), ("prefill", 5, 4), ("decode", 8, 1)]
)
def test_traced_models(traced_models: TracedModels, phase: Phase, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    report = run_pass(FuseGateUp(), program)
    assert report.rewrites == tuple(f"model.layers.{i}.mlp.gate_up_proj/Split" for i in range(2))
    assert report.skips == ()
    assert run_pass(FuseSiluMul(), program).rewrites != ()
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


# -- what is declined


GATE, UP = (f"layers.0.mlp.{part}_proj/MatMul" for part in ("gate", "up"))
DECLINED = {
    "up reads another tensor": (
        {
            "up0 = MatMul (x,": "up0 = MatMul (x2,",
            "float[1, 4, 6] x,": "float[1, 4, 6] x, float[1, 4, 6] x2,",
        },
        f"x is read by the products {[GATE]}, of which gates: {[GATE]}",
    ),
    "a third product reads it": (
        {
            "(float[1, 4, 6] x": '(float[6, 6] "router.weight", float[1, 4, 6] x',
            "=> (float[1, 4, 6] y)": "=> (float[1, 4, 6] y, float[1, 4, 6] routed)",
            '["layers.0.mlp/Sigmoid"]': '["router/MatMul"] routed = MatMul (x, "router.weight")\n'
            '["layers.0.mlp/Sigmoid"]',
        },
        f"x is read by the products {[GATE, 'router/MatMul', UP]}, of which gates: {[GATE]}",
    ),
    "both are gates": (
        {
            '["layers.0.mlp/Mul_1"] act0 = Mul (silu0, up0)': (
                '["other/Sigmoid"] share2 = Sigmoid (up0)\n'
                '["layers.0.mlp/Mul_1"] act0 = Mul (silu0, share2)'
            )
        },
        f"x is read by the products {[GATE, UP]}, of which gates: {[GATE, UP]}",
    ),
    "a weight is read twice": (
        {
            "=> (float[1, 4, 6] y)": "=> (float[1, 4, 6] y, float[6, 10] other)",
            '["layers.0.mlp/Sigmoid"]': (
                '["other/Neg"] other = Neg ("layers.0.mlp.up_proj.weight")\n'
                '["layers.0.mlp/Sigmoid"]'
            ),
        },
        "layers.0.mlp.up_proj.weight is read by ['other/Neg', 'layers.0.mlp.up_proj/MatMul']",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_only_looks_like_it_is_declined(case: str):
    replaced, reason = DECLINED[case]
    program = linears_from_text(changed(BEFORE, replaced))
    report = run_pass(FuseGateUp(), program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        "layers.0.mlp.gate_proj/MatMul": reason
    }
    assert report.rewrites == SPLITS[1:]


def test_one_bias_alone_is_declined():
    text = changed(
        BEFORE,
        {
            "up1_raw = MatMul": "up1 = MatMul",
            '  ["layers.1.mlp.up_proj/Add"] up1 = Add (up1_raw, "layers.1.mlp.up_proj.bias")\n': "",
        },
    )
    report = run_pass(FuseGateUp(), linears_from_text(text))
    assert {skip.node: skip.reason for skip in report.skips} == {
        "layers.1.mlp.up_proj/MatMul": "of 2 products, a bias is added to "
        "layers.1.mlp.gate_proj/MatMul alone"
    }
    assert report.rewrites == SPLITS[:1]


def test_stored_weights_are_declined():
    program = linears_from_text(BEFORE)
    run_pass(StoreWeights(), program)
    before = text_of(program)
    assert reasons(run_pass(FuseGateUp(), program)) == {
        "layers.0.mlp.gate_proj/MatMul": "the weight of layers.0.mlp.gate_proj/MatMul is stored "
        "otherwise than [in, out]",
        "layers.1.mlp.up_proj/MatMul": "the weight of layers.1.mlp.gate_proj/MatMul is stored "
        "otherwise than [in, out]",
    }
    assert text_of(program) == before


def test_options():
    assert FuseGateUp().promise() == Contract.close(rtol=1e-5, atol=1e-5)
    assert FuseGateUp().required() == ()
    assert FuseGateUp.after == ("fold-constants",)
    assert "fuse-gate-up" in StoreWeights.after
    assert FuseGateUp.phases == ("prefill", "decode")
