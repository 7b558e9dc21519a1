"""Linears, residuals and activations in 16 bits; norms, attention and angles in float32."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from program_runs import reasons, run_pass, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from rewritten_model import rewritten
from traced_models import VOCABULARY, WINDOW, TracedModels
from transformers import AutoModelForCausalLM

from compiler.contracts.pass_base import Arrays, Contract
from compiler.contracts.program import Phase, Program
from compiler.contracts.weight_values import value
from compiler.contracts.weights import CheckpointRef
from compiler.numerics.float64 import in_float64
from compiler.numerics.reference_run import run_model
from passes.annotate_int8_qdq import AnnotateInt8QDQ, Operator
from passes.cast_dtype import CastDtype, Dtype
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "cast-dtype.before.txt").read_text(encoding="utf-8")
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16")
ROUNDOFF: Mapping[Dtype, float] = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
NARROW = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def element_types(program: Program) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(program.model()).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def computing_in_16_bits(program: Program) -> set[str]:
    """Operators, but for Casts, that read or give a narrow value."""
    types = element_types(program)
    return {
        node.op
        for node in program.graph.nodes
        for tensor in (*node.inputs, *node.outputs)
        if node.op != "Cast" and types.get(tensor.name) in NARROW
    }


def parameters(program: Program, checkpoint: CheckpointRef) -> dict[str, np.ndarray]:
    return {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}


# -- what it writes


@pytest.mark.parametrize("dtype", DTYPES)
def test_golden(golden: Golden, dtype: Dtype):
    program = program_from_text(BEFORE)
    report = run_pass(CastDtype(dtype), program)
    golden(f"cast-dtype.{dtype}.txt", text_of(program))
    assert report.rewrites == (
        *("embed/Gather", "norm/Mul_1", "q_proj/MatMul", "q_proj/Add", "attn/Mul"),
        *("attn/Transpose", "o_proj/MatMul", "layer/Add", "mlp/Sigmoid", "mlp/Mul"),
        "lm_head/MatMul",
    )
    assert report.skips == ()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_run_rewrites_nothing(dtype: Dtype):
    program = program_from_text(BEFORE)
    run_pass(CastDtype(dtype), program)
    once = text_of(program)
    assert reasons(run_pass(CastDtype(dtype), program)) == {
        "embed/Gather": f"it gives {dtype} already"
    }
    assert text_of(program) == once


# -- numbers


LENGTHS: tuple[tuple[Phase, int, int], ...] = (("prefill", 3, 9), ("decode", 5, 1))


@pytest.mark.parametrize(("phase", "past", "valid"), LENGTHS)
@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_traced_models(
    traced_models: TracedModels, dtype: Dtype, name: str, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs(name).programs[phase],
        traced_models.checkpoint(name),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    signature = program.inputs(), program.outputs()
    before, old = program.model(), parameters(program, checkpoint)
    rewriting = CastDtype(dtype)
    assert run_pass(rewriting, program).skips == ()
    assert (program.inputs(), program.outputs()) == signature
    assert computing_in_16_bits(program) == {
        *("Add", "Mul", "Neg", "Sigmoid", "MatMul"),
        *("Concat", "Gather", "Reshape", "Slice", "Transpose"),
    }
    rounded, new = rewriting.adapt_weights(old, program), parameters(program, checkpoint)
    for parameter, array in new.items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array.astype(np.float32), rounded[parameter])
    wanted = run_model(before, {**inputs, **rounded})
    found = run_model(program.model(), {**inputs, **new})
    for output, array in wanted.items():
        error = np.abs(found[output] - array).max()
        assert found[output].dtype == np.float32
        assert error <= rewriting.promise().atol, output
        assert error < 16 * ROUNDOFF[dtype], "two layers stay far below the bound"
    assert np.abs(found["logits"] - wanted["logits"]).max() > ROUNDOFF[dtype]
    for output, array in found.items():  # what enters the caches is narrow
        if output != "logits":
            rows = torch.from_numpy(array[:, :, past:])
            assert torch.equal(rows.to(getattr(torch, dtype)).float(), rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_its_roundings_it_is_the_graph_before(traced_models: TracedModels, dtype: Dtype):
    """What no tolerance of a 16-bit type shows: nothing but roundings was put in."""
    program, checkpoint = (
        traced_models.programs("gqa").programs["prefill"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=3, valid=9, vocabulary=VOCABULARY)
    before, old = program.model(), parameters(program, checkpoint)
    run_pass(CastDtype(dtype), program)
    rounded = CastDtype(dtype).adapt_weights(old, program)

    def wide(model: onnx.ModelProto, given: Arrays) -> dict[str, np.ndarray]:
        floats = {n: a.astype(np.float64) if a.dtype.kind in "fV" else a for n, a in given.items()}
        return run_model(in_float64(model), floats)

    wanted = wide(before, {**inputs, **rounded})
    found = wide(program.model(), {**inputs, **parameters(program, checkpoint)})
    for output, array in wanted.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-12, atol=1e-12, err_msg=output)


@pytest.mark.parametrize(("phase", "past", "valid"), [("prefill", 5, 4), ("decode", 8, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_operators_stay_float32(
    traced_models: TracedModels, dtype: Dtype, phase: Phase, past: int, valid: int
):
    plain, inputs = rewritten(traced_models, phase, past=past, valid=valid, has_storage=False)
    program, _ = rewritten(traced_models, phase, past=past, valid=valid, has_storage=False)
    checkpoint = traced_models.checkpoint("gqa", layers=1)
    rewriting = CastDtype(dtype)
    assert run_pass(rewriting, program).skips == ()
    assert (program.inputs(), program.outputs()) == (plain.inputs(), plain.outputs())
    types = element_types(program)
    fused = [node for node in program.graph.nodes if node.domain]
    assert {node.op for node in fused} == {
        *("CacheUpdate", "FusedAttention", "FusedRMSNorm", "FusedSiluMul")
    }
    for node in fused:
        assert not {types[tensor.name] for tensor in (*node.inputs, *node.outputs)} & NARROW
    rounded = rewriting.adapt_weights(parameters(plain, checkpoint), program)
    wanted = run_model(plain.model(), {**inputs, **rounded})
    found = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    for output, array in wanted.items():
        assert np.abs(found[output] - array).max() < 16 * ROUNDOFF[dtype], output
    assert np.abs(found["logits"] - wanted["logits"]).max() > 0.5 * ROUNDOFF[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_as_close_as_transformers_in_that_dtype(traced_models: TracedModels, dtype: Dtype):
    program, checkpoint = (
        traced_models.programs("mha").programs["prefill"],
        traced_models.checkpoint("mha"),
    )
    inputs = traced_inputs(program, past=0, valid=WINDOW, vocabulary=VOCABULARY)

    def reference(kind: torch.dtype) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=kind, attn_implementation="eager", local_files_only=True
        )
        with torch.no_grad():
            ids = torch.from_numpy(inputs["input_ids"])
            return model.eval()(ids, use_cache=False).logits.float().numpy()

    exact, theirs = reference(torch.float32), reference(getattr(torch, dtype))
    run_pass(CastDtype(dtype), program)
    ours = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})["logits"]
    errors = [np.sqrt(np.mean((logits - exact) ** 2)) for logits in (ours, theirs)]
    assert 0.3 * ROUNDOFF[dtype] < errors[0] < 1.25 * errors[1]
    assert np.abs(ours - theirs).max() < 24 * ROUNDOFF[dtype]


# -- what overflows 16 bits


def _scaled(program: Program, given: Arrays, sizes: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Parameters whose names end so, larger; in the dtype that they have."""
    found = dict(given)
    for ending, size in sizes.items():
        for name in [name for name in program.weights if name.endswith(ending)]:
            found[name] = (given[name].astype(np.float32) * size).astype(given[name].dtype)
    return found


@pytest.mark.parametrize("is_fused", [False, True])
def test_large_activations_do_not_overflow(traced_models: TracedModels, is_fused: bool):
    """Residuals of 2000 (their squares are over 65504), scores of a million."""
    program = traced_models.programs("gqa", layers=1).programs["prefill"]
    inputs = traced_inputs(program, past=5, valid=4, vocabulary=VOCABULARY)
    if is_fused:
        program, inputs = rewritten(traced_models, "prefill", past=5, valid=4, has_storage=False)
    checkpoint = traced_models.checkpoint("gqa", layers=1)
    sizes = {"embed_tokens.weight": 4e3, "q_proj.weight": 1e3, "k_proj.weight": 1e3}
    before, old = program.model(), parameters(program, checkpoint)
    run_pass(CastDtype("float16"), program)
    rounded = CastDtype("float16").adapt_weights(old, program)
    wanted = run_model(before, {**inputs, **_scaled(program, rounded, sizes)})
    new = parameters(program, checkpoint)
    found = run_model(program.model(), {**inputs, **_scaled(program, new, sizes)})
    keys = wanted["present.0.key"]
    assert np.abs(keys).max() > 1e3, "a product of two is over 65504"
    for output, array in found.items():
        assert np.isfinite(array).all(), output
    np.testing.assert_allclose(found["present.0.key"], keys, rtol=0.01, atol=20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fully_masked_row_is_finite(traced_models: TracedModels, dtype: Dtype):
    """Left padding blocks all that its first rows see: as before, they look everywhere alike."""
    program, checkpoint = (
        traced_models.programs("gqa").programs["prefill"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=3, valid=9, vocabulary=VOCABULARY)
    inputs["attention_mask"][0, : 3 + 6] = 0
    before, old = program.model(), parameters(program, checkpoint)
    run_pass(CastDtype(dtype), program)
    wanted = run_model(before, {**inputs, **CastDtype(dtype).adapt_weights(old, program)})
    found = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    for output, array in wanted.items():
        assert np.isfinite(found[output]).all(), output
        assert np.abs(found[output] - array).max() < 16 * ROUNDOFF[dtype], output


# -- what is declined


def test_a_constant_that_overflows_keeps_its_node_wide():
    replaced = {
        "silu = Mul (stream, share)": "moved = Add (stream, far)\n"
        '["mlp/Mul_1"] silu = Mul (moved, share)',
        "float scale = {0.5}": "float scale = {0.5}, float far = {-100000}",
    }
    over = "its constant -100000 overflows float16"
    for dtype, skips in zip(DTYPES, ({"mlp/Mul": over}, {}), strict=True):
        program = program_from_text(changed(BEFORE, replaced))
        report = run_pass(CastDtype(dtype), program)
        assert {skip.node: skip.reason for skip in report.skips} == skips
        assert ("mlp/Mul" in report.rewrites) == (not skips)
        assert "lm_head/MatMul" in report.rewrites


def test_a_weight_that_is_made_of_something_stays_wide():
    replaced = {
        'MatMul (context, "o_proj.weight")': "MatMul (context, wide)",
        '["o_proj/MatMul"]': '["o_proj/Transpose"] wide = Transpose ("o_proj.weight")\n'
        '["o_proj/MatMul"]',
    }
    program = program_from_text(changed(BEFORE, replaced))
    report = run_pass(CastDtype("float16"), program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        "o_proj/MatMul": "it does not read o_proj.weight itself as float32 [in, out]"
    }
    # The stream is wide from there on, and the head narrows it again.
    assert {"layer/Add", "mlp/Mul", "o_proj/MatMul"}.isdisjoint(report.rewrites)
    assert "lm_head/MatMul" in report.rewrites


def test_a_graph_without_a_linear_is_left():
    program = program_from_text(
        'main (float[4, 6] x) => (float[4, 6] y) { ["a/Sigmoid"] y = Sigmoid (x) }'
    )
    before = text_of(program)
    assert reasons(run_pass(CastDtype("float16"), program)) == {
        "graph": "no linear and no embedding reads a float32 parameter"
    }
    assert text_of(program) == before


@pytest.mark.parametrize(
    ("replaced", "wide"),
    [
        # A square, however it is spelled; a rotation scaled in float32 before it is rounded.
        ({"Pow (h, two)": "Mul (h, h)"}, {"norm/Pow"}),
        (
            {
                "q = Add (product,": "q_0 = Add (product,",
                '["attn/Mul"]': '["attn/Pow"] q = Pow (q_0, two)\n["attn/Mul"]',
            },
            {"attn/Pow", "attn/Mul"},
        ),
        (
            {
                "cosines = Cos (angles)": "cosines_0 = Cos (angles)\n"
                '["rotary/Mul_1"] cosines = Mul (cosines_0, scale)'
            },
            {"rotary/Mul_1"},
        ),
    ],
)
def test_what_stays_wide(replaced: dict[str, str], wide: set[str]):
    program = program_from_text(changed(BEFORE, replaced))
    report = run_pass(CastDtype("float16"), program)
    assert not wide & set(report.rewrites)
    types = element_types(program)
    for node in (node for node in program.graph.nodes if node.name in wide):
        assert types[node.outputs[0].name] == onnx.TensorProto.FLOAT


# -- beside other passes


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_weights_keep_the_dtype(traced_models: TracedModels, dtype: Dtype):
    program, checkpoint = (
        traced_models.programs("gqa").programs["decode"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    run_pass(CastDtype(dtype), program)
    wanted = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    assert run_pass(StoreWeights(), program).skips == ()
    for name, weight in program.weights.items():
        assert weight.key == (name if dtype == "bfloat16" else f"cast({name}, float16)")
    found = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    for output, array in wanted.items():
        assert found[output].tobytes() == array.tobytes(), output
    assert run_pass(StoreWeights(), program).rewrites == ()


@pytest.mark.parametrize("operator", ["qdq", "vastai"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_weights_are_dequantized_to_the_dtype(
    traced_models: TracedModels, dtype: Dtype, operator: Operator
):
    program, checkpoint = (
        traced_models.programs("gqa").programs["decode"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    run_pass(CastDtype(dtype), program)
    before, old = program.model(), parameters(program, checkpoint)
    rewriting = AnnotateInt8QDQ(operator=operator)
    assert run_pass(rewriting, program).skips == ()
    wanted = run_model(before, {**inputs, **rewriting.adapt_weights(old, program)})
    found = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    for output, array in wanted.items():
        assert found[output].tobytes() == array.tobytes(), output
    run_pass(StoreWeights(), program)
    stored = run_model(program.model(), {**inputs, **parameters(program, checkpoint)})
    assert stored["logits"].tobytes() == wanted["logits"].tobytes()


def test_options():
    assert CastDtype(dtype="float16").promise() == Contract.rounds(atol=2.0**-4)
    assert CastDtype(dtype="bfloat16").promise() == Contract.rounds(atol=0.5)
    assert not CastDtype.changes_signature
    assert {"fuse-attention", "fuse-rms-norm", "fuse-silu-mul"} <= set(CastDtype.after)
    assert "cast-dtype" in StoreWeights.after
    assert "cast-dtype" in AnnotateInt8QDQ.after
    with pytest.raises(TypeError, match="dtype"):
        CastDtype()  # pyright: ignore[reportCallIssue] - which is the point
