"""Graphs on onnxruntime, in float32 and float64."""

import ml_dtypes
import numpy as np
import pytest
from norm_graph import NORM, numbers, parsed
from program_text import program_from_text

from compiler.contracts.errors import PassError
from compiler.numerics.reference_run import ReferenceSession, run_model, with_outputs
from passes.fuse_rms_norm import FuseRMSNorm


def test_a_graph_with_functions_runs_as_it_is():
    program = program_from_text(NORM)
    inputs = {"x": numbers(1, 4, 6), "norm.weight": numbers(6)}
    plain = run_model(program.model(), inputs)["y"]
    assert FuseRMSNorm().run(program).rewrites
    np.testing.assert_array_equal(run_model(program.model(), inputs)["y"], plain)


def test_quantized_weights_are_not_multiplied_with_rounded_activations():
    model = parsed(
        """
        g (float[1, 64] x, int8[64, 8] w, float[8] scale) => (float[1, 8] y) {
          wide = DequantizeLinear <axis: int = 1> (w, scale)
          y = MatMul (x, wide)
        }
        """
    )
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 64), dtype=np.float32)
    w = random.integers(-127, 128, (64, 8)).astype(np.int8)
    scale = random.uniform(0.01, 0.02, 8).astype(np.float32)
    found = run_model(model, {"x": x, "w": w, "scale": scale})["y"]
    wanted = x.astype(np.float64) @ (w * scale.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_in_and_out():
    model = parsed("g (bfloat16[3] x) => (bfloat16[3] y) { y = Identity (x) }")
    x = np.array([1.0, 1.0078125, -3.0], ml_dtypes.bfloat16)
    found = ReferenceSession(model).run({"x": x})
    assert found["y"].dtype == np.float32
    np.testing.assert_array_equal(found["y"], x.astype(np.float32))


def test_any_tensor_can_be_an_output():
    program = program_from_text(NORM)
    x = numbers(1, 4, 6)
    tapped = with_outputs(program.model(), ["mean", "y"])
    found = run_model(tapped, {"x": x, "norm.weight": numbers(6)})
    np.testing.assert_allclose(found["mean"], (x**2).mean(-1, keepdims=True), rtol=1e-6)
    assert list(found) == ["mean", "y"]


def test_feeds_that_a_graph_does_not_take_are_left_out():
    model = parsed("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    ones = np.ones(2, np.float32)
    assert run_model(model, {"x": ones, "z": ones})["y"].tolist() == [-1, -1]


def test_an_operator_without_a_kernel_is_the_graphs_fault():
    model = parsed("g (double[2] x) => (double[2] y) { y = HardSigmoid (x) }")
    with pytest.raises(PassError, match=r"onnxruntime refuses the graph: .*HardSigmoid") as caught:
        ReferenceSession(model)
    assert caught.value.code == "not-runnable"


def test_a_node_that_fails_while_running():
    model = parsed(
        "g (float[N] x, float[M] z) => (float[K] y) { y = Add (x, z) }",
    )
    with pytest.raises(PassError, match="onnxruntime refuses the graph: "):
        run_model(model, {"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})
