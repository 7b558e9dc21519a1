"""int8 and 4-bit weights against the definition, and the annotated graph against float64."""

from typing import Literal

import numpy as np
import onnx
import pytest
from program_runs import random_parameters, run_pass, run_program
from program_text import linears_from_text

from compiler.contracts.pass_base import Arrays
from compiler.contracts.program import Program
from compiler.contracts.weight_values import value
from compiler.contracts.weights import DTYPES, cast, source, transpose
from compiler.numerics.quiet_runtime import import_onnxruntime
from passes.annotate_int8_qdq import Activations, AnnotateInt8QDQ, Operator
from passes.store_weights import StoreWeights

OUT, IN, VOCABULARY = 24, 32, 40
TEXT = f"""main (
  int64[1, 4] input_ids, float[{VOCABULARY}, {IN}] "embed.weight",
  float[{IN}, {OUT}] "up.weight", float[{IN}, {OUT}] "gate.weight"
) => (float[1, 4, {OUT}] y, float[1, 4, {OUT}] z)
{{
  ["embed/Gather"] x = Gather <axis: int = 0> ("embed.weight", input_ids)
  ["up/MatMul"] y = MatMul (x, "up.weight")
  ["gate/MatMul"] z = MatMul (x, "gate.weight")
}}
"""
IDS = np.array([[3, 0, 39, 3]])
Bits = Literal[8, 4]
# How codes are made: operator, bits, inputs that share a scale.
CODES: tuple[tuple[Operator, Bits, int], ...] = (
    ("qdq", 8, 0),
    ("qdq", 8, 8),
    ("qdq", 4, 0),
    ("qdq", 4, 16),
    ("vastai", 8, 0),
    ("vastai", 4, 0),
)
LARGEST = {8: np.float32(127), 4: np.float32(7)}


def nearest(rows: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of rows [out, in] and scales [out, groups], whole matrices at once."""
    grouped = rows.astype(np.float32).reshape(len(rows), -1, group or rows.shape[1])
    scales = np.abs(grouped).max(axis=2) / LARGEST[bits]
    scales = np.where(scales < np.float32(1.17549435e-38), np.float32(1), scales)
    return np.round(grouped / scales[:, :, None]).reshape(rows.shape), scales


def rounded(rows: np.ndarray, bits: int, group: int) -> np.ndarray:
    """What is left of rows, in float64."""
    codes, scales = nearest(rows, bits, group)
    return codes.astype(np.float64) * np.repeat(scales, rows.shape[1] // scales.shape[1], axis=1)


def matrix(dtype: str) -> np.ndarray:
    """Rows of ordinary numbers, zeros, numbers below the smallest normal one, large ones, ties."""
    rows = np.random.default_rng(3).standard_normal((OUT, IN)).astype(np.float32)
    smallest, largest = (1e-7, 1e4) if dtype == "float16" else (1e-39, 1e37)
    rows[1] = 0
    rows[2] *= smallest
    rows[3, 8:] = 0
    rows[4] *= np.float32(smallest) * 1000
    rows[5] *= largest
    rows[6] = np.linspace(-127, 127, IN).round() / 2
    rows[6, 0] = -127
    return rows.astype(DTYPES[dtype])


@pytest.mark.parametrize(("operator", "bits", "group"), CODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_the_definition_s_to_the_bit(
    dtype: str, operator: Operator, bits: Bits, group: int
):
    program, rows = linears_from_text(TEXT), matrix(dtype)
    program.weights["up.weight"] = transpose(
        cast(source("up.weight", rows.shape, dtype), "float32")
    )
    rewriting = AnnotateInt8QDQ(("up",), bits=bits, group_size=group, operator=operator)
    assert rewriting.run(program).rewrites == ("up/MatMul",)
    codes, scales = nearest(rows, bits, group)
    found, steps = (
        value(program.weights[name], lambda _, start, stop: rows[start:stop])
        for name in ("up.weight", "up.weight_scale")
    )
    assert (found.dtype, steps.dtype) == (np.int8, np.float32)
    assert (found.shape, steps.shape) == ((OUT, IN), scales.shape if group else (OUT,))
    np.testing.assert_array_equal(found, codes)
    assert steps.tobytes() == scales.tobytes()
    assert np.abs(found).max() == LARGEST[bits]
    assert (scales[1] == 1).all()
    assert dtype == "float16" or (scales[2] == 1).all(), "its scale would be subnormal"
    # On what the graph before the pass is run: the same products in that graph's layout and dtype.
    for wanted in (np.float32, np.float64):
        old = {"up.weight": np.ascontiguousarray(rows.astype(wanted).T)}
        adapted = rewriting.adapt_weights(old, program)["up.weight"]
        assert adapted.dtype == wanted
        assert (rounded(rows, bits, group).astype(wanted) == adapted.T).all()


# -- the graph


def quantized(rewriting: AnnotateInt8QDQ) -> tuple[Program, dict[str, np.ndarray]]:
    """The graph after the pass and store-weights, and its parameters."""
    program = linears_from_text(TEXT)
    assert run_pass(rewriting, program).skips == ()
    run_pass(StoreWeights(), program)
    return program, random_parameters(program)


def by_token(x: np.ndarray) -> np.ndarray:
    """What int8 leaves of activations [1, T, K], in float64 over float32 scales."""
    scales = np.abs(x.astype(np.float32)).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(x / scales) * scales.astype(np.float64)


def in_numpy(old: Arrays, rewriting: AnnotateInt8QDQ) -> dict[str, np.ndarray]:
    """The outputs in float64, from the float weights [out, in]."""
    codes = rewriting.bits, rewriting.group_size
    table = old["embed.weight"].astype(np.float64)
    if "embed" in rewriting.include:
        table = rounded(old["embed.weight"], *codes)
    x = table[IDS]
    if rewriting.activations == "int8":
        x = by_token(x)
    up, gate = (rounded(old[f"{name}.weight"], *codes) for name in ("up", "gate"))
    return {"y": x @ up.T, "z": x @ gate.T}


def float_weights() -> dict[str, np.ndarray]:
    program = linears_from_text(TEXT)
    for name, weight in program.weights.items():
        program.weights[name] = source(name, program.checkpoint_tensors[name], weight.dtype)
    return random_parameters(program)


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("include", [("up", "gate"), ("up", "gate", "embed")])
@pytest.mark.parametrize(("operator", "bits", "group"), CODES)
def test_the_graph_computes_what_the_codes_say(
    operator: Operator,
    bits: Bits,
    group: int,
    include: tuple[str, ...],
    activations: Activations,
):
    rewriting = AnnotateInt8QDQ(
        include, bits=bits, group_size=group, operator=operator, activations=activations
    )
    program, parameters = quantized(rewriting)
    wanted = in_numpy(float_weights(), rewriting)
    found = run_program(program, {"input_ids": IDS, **parameters})
    for name, array in wanted.items():
        scale = np.abs(array).max()
        assert np.abs(found[name] - array).max() < 1e-5 * scale
        plain = in_numpy(float_weights(), AnnotateInt8QDQ(("up", "gate")))[name]
        is_plainest = (bits, group, activations, len(include)) == (8, 0, "float", 2)
        assert is_plainest or np.abs(array - plain).max() > 1e-3 * scale, "options are to be seen"


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(("operator", "group"), [("qdq", 0), ("qdq", 8), ("vastai", 0)])
def test_an_optimising_runtime_takes_the_graph(
    operator: Operator, group: int, activations: Activations
):
    """With onnxruntime's default optimisations, less the one that rounds activations on its own."""
    include = ("up", "gate", "embed")
    rewriting = AnnotateInt8QDQ(
        include, group_size=group, operator=operator, activations=activations
    )
    program, parameters = quantized(rewriting)
    model = program.model()
    onnx.checker.check_model(model, full_check=True)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(["y", "z"], {"input_ids": IDS, **parameters})
    for array, exact in zip(found, in_numpy(float_weights(), rewriting).values(), strict=True):
        assert np.abs(array - exact).max() < 1e-4 * np.abs(exact).max()


def test_a_token_of_zeros_and_tiny_tokens_stay_finite():
    program, parameters = quantized(AnnotateInt8QDQ(("up", "gate"), activations="int8"))
    parameters["embed.weight"][3] = 0
    parameters["embed.weight"][39] = np.float32(1e-41)
    found = run_program(program, {"input_ids": IDS, **parameters})
    for array in found.values():
        assert not array[0, [0, 2, 3]].any()
        assert np.isfinite(array).all()
        assert array[0, 1].any()
