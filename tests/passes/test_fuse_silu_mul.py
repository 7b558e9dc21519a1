"""gate * sigmoid(gate) * up becomes one node."""

from pathlib import Path

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase
from passes.fuse_silu_mul import FUSED_SILU_MUL, FuseSiluMul

BEFORE = (Path(__file__).parent / "golden" / "fuse-silu-mul.before.txt").read_text(encoding="utf-8")


def test_golden(golden: Golden):
    program = program_from_text(BEFORE)
    report = run_pass(FuseSiluMul(), program)
    golden("fuse-silu-mul.after.txt", text_of(program))
    assert report.rewrites == ("layer0/FusedSiluMul", "layer1/FusedSiluMul")
    assert report.skips == ()
    assert program.functions == {"FusedSiluMul": FUSED_SILU_MUL}


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    run_pass(FuseSiluMul(), program)
    once = text_of(program)
    report = run_pass(FuseSiluMul(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_numbers():
    random = np.random.default_rng(1)
    inputs = {name: random.standard_normal((1, 4, 6), dtype=np.float32) for name in ("gate", "up")}
    program = program_from_text(BEFORE)
    wanted = run_program(program, inputs)
    run_pass(FuseSiluMul(), program)
    found = run_program(program, inputs)
    gate, up = inputs["gate"], inputs["up"]
    np.testing.assert_allclose(found["y"], gate / (1 + np.exp(-gate)) * up, rtol=1e-5, atol=1e-6)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


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
    report = run_pass(FuseSiluMul(), program)
    assert report.rewrites == tuple(f"model.layers.{i}.mlp/FusedSiluMul" for i in range(2))
    assert report.skips == ()
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6, err_msg=output)


DECLINED = {
    "another tensor is gated": (
        {"Mul (gate, share)": "Mul (up, share)"},
        "it does not multiply its own input",
    ),
    "the share is added": (
        {"Mul (gate, share)": "Add (gate, share)"},
        "it does not multiply its own input",
    ),
    "the share is read twice": (
        {"Mul (silu, up)": "Mul (silu, share)"},
        "it does not multiply its own input",
    ),
    "nothing is gated": (
        {"Mul (silu, up)": "Add (silu, up)"},
        "layer0/Mul is not read by one product",
    ),
    "a constant is gated": (
        {
            "Mul (silu, up)": "Mul (silu, half)",
            "y, float[1, 4, 6] z)": "y, float[1, 4, 6] z)\n< float half = {0.5} >",
        },
        "layer0/Mul_1 multiplies by a constant",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_only_looks_like_it_is_declined(case: str):
    replaced, reason = DECLINED[case]
    report = run_pass(FuseSiluMul(), program_from_text(changed(BEFORE, replaced)))
    assert {skip.node: skip.reason for skip in report.skips} == {"layer0/Sigmoid": reason}
    assert report.rewrites == ("layer1/FusedSiluMul",)


def test_options():
    assert FuseSiluMul().promise() == Contract.close(rtol=1e-5, atol=1e-6)
    assert FuseSiluMul.after == ("fold-constants",)
    assert FuseSiluMul.phases == ("prefill", "decode")
