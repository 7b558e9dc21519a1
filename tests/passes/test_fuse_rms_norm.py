"""The operators of an RMS norm become one node."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase
from passes.fold_constants import FoldConstants
from passes.fuse_rms_norm import FUSED_RMS_NORM, FuseRMSNorm

BEFORE = (Path(__file__).parent / "golden" / "fuse-rms-norm.before.txt").read_text(encoding="utf-8")


def test_golden(golden: Golden):
    program = program_from_text(BEFORE)
    report = run_pass(FuseRMSNorm(), program)
    golden("fuse-rms-norm.after.txt", text_of(program))
    assert report.rewrites == ("norm1/FusedRMSNorm", "norm2/FusedRMSNorm")
    assert report.skips == ()
    assert program.functions == {"FusedRMSNorm": FUSED_RMS_NORM}


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    run_pass(FuseRMSNorm(), program)
    once = text_of(program)
    report = run_pass(FuseRMSNorm(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_numbers():
    random = np.random.default_rng(1)
    shapes = {"x": (1, 4, 6), "norm1.weight": (6,), "norm2.weight": (6,)}
    inputs = {
        name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    x = inputs["x"].astype(np.float64)
    for weight, epsilon in (("norm1.weight", 1e-6), ("norm2.weight", 0.1)):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * inputs[weight]
    program = program_from_text(BEFORE)
    np.testing.assert_allclose(run_program(program, inputs)["y"], x, rtol=1e-5, atol=1e-6)
    run_pass(FuseRMSNorm(), program)
    np.testing.assert_allclose(run_program(program, inputs)["y"], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, WINDOW), ("prefill", 5, 4), ("decode", 8, 1)]
)
def test_traced_models(traced_models: TracedModels, phase: Phase, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    run_pass(FoldConstants(), program)
    wanted = run_program(program, inputs, checkpoint)
    report = run_pass(FuseRMSNorm(), program)
    assert set(report.rewrites) == {
        "model.norm/FusedRMSNorm",
        *(
            f"model.layers.{layer}.{norm}/FusedRMSNorm"
            for layer in range(2)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ),
    }
    assert report.skips == ()
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6, err_msg=output)


# -- what is declined, in the first of the two norms

DECLINED = {
    "no epsilon": (
        {"Add (mean, epsilon)": "Abs (mean)"},
        "no constant epsilon is added to its mean",
    ),
    "an epsilon that is computed": (
        {"Add (mean, epsilon)": "Add (mean, x)"},
        "no constant epsilon is added to its mean",
    ),
    "no square root": (
        {"Sqrt (shifted)": "Abs (shifted)"},
        "norm1/Add does not go through Sqrt and its inverse",
    ),
    "no inverse": (
        {"Reciprocal (root)": "Neg (root)"},
        "norm1/Add does not go through Sqrt and its inverse",
    ),
    "another tensor is scaled": (
        {"Mul (x, inverse)": "Mul (squares, inverse)"},
        "norm1/Reciprocal does not scale the tensor that was squared",
    ),
    "no weight": (
        {'Mul ("norm1.weight", scaled)': "Add (scaled, x)"},
        "norm1/Mul is not multiplied by a weight of one axis",
    ),
    "a weight of two axes": (
        {'float[6] "norm1.weight"': 'float[4, 6] "norm1.weight"'},
        "norm1/Mul is not multiplied by a weight of one axis",
    ),
    "the scaled value is read twice": (
        {
            'y = Mul (scaled2, "norm2.weight")': (
                'y2 = Mul (scaled2, "norm2.weight")\n["extra/Add"] y = Add (y2, scaled)'
            )
        },
        "norm1/Mul is not multiplied by a weight of one axis",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_only_looks_like_a_norm_is_declined(case: str):
    replaced, reason = DECLINED[case]
    program = program_from_text(changed(BEFORE, replaced))
    report = run_pass(FuseRMSNorm(), program)
    assert {skip.node: skip.reason for skip in report.skips} == {"norm1/ReduceMean": reason}
    assert report.rewrites == ("norm2/FusedRMSNorm",)


def test_an_epsilon_of_half_precision_is_declined():
    program = program_from_text(BEFORE)
    for tensor in program.graph.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.name in ("epsilon", "larger"):
            tensor.values = tensor.values.astype(np.float16)
    before = text_of(program)
    assert reasons(FuseRMSNorm().run(program)) == {
        "norm1/ReduceMean": "epsilon is float16, expected float32",
        "norm2/ReduceMean": "epsilon is float16, expected float32",
    }
    assert text_of(program) == before


@pytest.mark.parametrize(
    "replaced",
    [
        {"float two = {2}": "float two = {3}"},
        {"int64[1] last = {-1}": "int64[1] last = {1}"},
        {
            "keepdims: int = 1> (squares, ": "keepdims: int = 0> (squares, ",
            "float[1, 4, 6] x": "float[6] x",
            "float[1, 4, 6] y": "float[6] y",
        },
        {"Pow (x, two)": "Abs (x)"},
    ],
)
def test_another_mean_is_no_candidate(replaced: dict[str, str]):
    report = run_pass(FuseRMSNorm(), program_from_text(changed(BEFORE, replaced)))
    assert "norm1/FusedRMSNorm" not in report.rewrites


def test_options():
    assert FuseRMSNorm().promise() == Contract.close(rtol=1e-5, atol=1e-6)
    assert FuseRMSNorm.after == ("fold-constants",)
    assert FuseRMSNorm.phases == ("prefill", "decode")
