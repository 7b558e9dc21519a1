"""Chosen linears with int8 weights: what is chosen, what is written, and what stays as it was.

Numbers: test_int8_numbers.py. Groups, tables, activations: test_int8_groups.py and the like.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.inliner
import onnx_graphsurgeon as gs
import pytest
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, TracedModels

from compiler.config import PassSpec, build_passes
from compiler.contracts.errors import ConfigError, PassError
from compiler.contracts.pass_base import Arrays, Contract
from compiler.contracts.program import Phase, Program
from compiler.contracts.weight_values import value
from compiler.contracts.weights import CheckpointRef, cast, concat, source, transpose
from compiler.numerics.reference_run import run_model
from passes.annotate_int8_qdq import QUANTIZED_LINEAR, SEVEN_LINEARS, AnnotateInt8QDQ, Operator
from passes.keep_qkv_bias import KeepQKVBias
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "annotate-int8-qdq.before.txt").read_text(
    encoding="utf-8"
)
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
Q, DOWN, HEAD = f"{ATTENTION}.q_proj", f"{MLP}.down_proj", "lm_head"
EMBED = "model.embed_tokens"
# The small graph has two of the seven.
INCLUDE = ("*.self_attn.[qkvo]_proj", "*.mlp.down_proj")
OPERATORS: tuple[Operator, ...] = ("qdq", "vastai")


def linears(text: str = BEFORE) -> Program:
    """As the trace leaves them: a linear's weight is the transpose of the checkpoint's."""
    program = program_from_text(text)
    for name, weight in program.weights.items():
        if len(weight.shape) == 2 and "embed" not in name:
            turned = replace(weight, shape=weight.shape[::-1])
            program.weights[name] = transpose(turned)
    return program


def read(name: str, start: int, stop: int) -> np.ndarray:
    """A checkpoint of random numbers with a channel of zeros."""
    shapes = {Q: (8, 6), DOWN: (6, 8), HEAD: (5, 6), "model.embed_tokens": (9, 6)}
    shape = shapes.get(name.removesuffix(".weight"), (8,) if name.endswith(".bias") else (6,))
    random = np.random.default_rng(len(name))
    drawn = random.standard_normal(shape, dtype=np.float32)
    if len(shape) == 2:
        drawn[3] = 0
    return drawn[start:stop]


def parameters(program: Program) -> dict[str, np.ndarray]:
    return {name: value(weight, read) for name, weight in program.weights.items()}


def nearest_int8(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[out, in] -> int8 and scales, one number after the other, as the definition has it."""
    codes, scales = np.zeros(matrix.shape, np.int8), np.ones(len(matrix), np.float32)
    for channel, row in enumerate(matrix.astype(np.float32)):
        largest = max(abs(entry) for entry in row)
        if largest > 0:
            scales[channel] = np.float32(largest) / np.float32(127)
        codes[channel] = [round(float(np.float32(entry / scales[channel]))) for entry in row]
    return codes, scales


# -- what it writes


@pytest.mark.parametrize("operator", OPERATORS)
def test_golden(golden: Golden, operator: Operator):
    program = linears()
    report = run_pass(AnnotateInt8QDQ(include=INCLUDE, operator=operator), program)
    golden(f"annotate-int8-qdq.{operator}.txt", text_of(program))
    assert report.rewrites == (f"{Q}/MatMul", f"{DOWN}/MatMul")
    assert report.skips == ()
    is_function = operator == "vastai"
    assert list(program.functions.values()) == ([QUANTIZED_LINEAR] if is_function else [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_second_run_rewrites_nothing(operator: Operator):
    program, rewriting = linears(), AnnotateInt8QDQ(include=INCLUDE, operator=operator)
    run_pass(rewriting, program)
    once = text_of(program)
    assert reasons(run_pass(rewriting, program)) == {
        f"{Q}/MatMul": "its weight is quantized already",
        f"{DOWN}/MatMul": "its weight is quantized already",
    }
    assert text_of(program) == once


@pytest.mark.parametrize("operator", OPERATORS)
def test_its_weights_are_the_nearest_int8(operator: Operator):
    program = linears()
    run_pass(AnnotateInt8QDQ(include=(*INCLUDE, HEAD), operator=operator), program)
    found = parameters(program)
    for module in (Q, DOWN, HEAD):
        stored = read(f"{module}.weight", 0, 8)
        codes, scales = nearest_int8(stored)
        assert found[f"{module}.weight"].dtype == np.int8
        np.testing.assert_array_equal(found[f"{module}.weight"], codes)
        np.testing.assert_array_equal(found[f"{module}.weight_scale"], scales)
        assert scales[3] == 1
        error = np.abs(codes * scales[:, None] - stored).max(axis=1)
        assert (error <= scales * np.float32(0.5001)).all()
        assert error.max() > 0


# -- numbers


def wanted_and_found(
    rewriting: AnnotateInt8QDQ, program: Program, checkpoint: CheckpointRef, inputs: Arrays
) -> tuple[dict[str, np.ndarray], ...]:
    """(unrounded, on the rounded weights, after the pass)."""
    before = program.model()
    old = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    unrounded = run_model(before, {**inputs, **old})
    assert run_pass(rewriting, program).skips == ()
    adapted = rewriting.adapt_weights(old, program)
    assert {n: (a.shape, a.dtype) for n, a in adapted.items()} == {
        n: (a.shape, a.dtype) for n, a in old.items()
    }
    rounded = run_model(before, {**inputs, **adapted})
    return unrounded, rounded, run_program(program, inputs, checkpoint)


LENGTHS: tuple[tuple[Phase, int, int], ...] = (("prefill", 3, 9), ("decode", 5, 1))


@pytest.mark.parametrize(("phase", "past", "valid"), LENGTHS)
@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_traced_models(
    traced_models: TracedModels, name: str, operator: Operator, phase: Phase, past: int, valid: int
):
    program = traced_models.programs(name).programs[phase]
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    rewriting = AnnotateInt8QDQ(operator=operator)
    unrounded, rounded, found = wanted_and_found(
        rewriting, program, traced_models.checkpoint(name), inputs
    )
    for output, array in rounded.items():
        assert found[output].tobytes() == array.tobytes(), output
    error = np.abs(found["logits"] - unrounded["logits"])[:, :valid].max()
    assert 1e-4 < error < 0.3
    quantized = {n for n, weight in program.weights.items() if weight.dtype == "int8"}
    assert quantized == {
        f"model.layers.{layer}.{part}_proj.weight"
        for layer in range(2)
        for part in (*(f"self_attn.{x}" for x in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
    }


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda codes, scales: (codes, np.roll(scales, 1)), id="a neighbour's scale"),
        pytest.param(lambda codes, scales: (codes, scales.max() + 0 * scales), id="one scale"),
        pytest.param(lambda codes, scales: (codes // 2, 2 * scales), id="seven bits"),
    ],
)
def test_a_wrong_scale_is_not_what_the_rounded_weights_give(
    traced_models: TracedModels,
    wrong: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
):
    program, checkpoint = (
        traced_models.programs("gqa").programs["decode"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    _, rounded, found = wanted_and_found(AnnotateInt8QDQ(), program, checkpoint, inputs)
    given = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    name = "model.layers.1.mlp.down_proj.weight"
    given[name], given[f"{name}_scale"] = wrong(given[name], given[f"{name}_scale"])
    broken = run_program(program, {**inputs, **given})
    assert np.abs(broken["logits"] - rounded["logits"]).max() > 1e-4
    assert found["logits"].tobytes() == rounded["logits"].tobytes()


def test_the_accelerator_s_operator_can_be_taken_apart(traced_models: TracedModels):
    program, checkpoint = (
        traced_models.programs("gqa").programs["decode"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    run_pass(AnnotateInt8QDQ(operator="vastai"), program)
    model = program.model()
    assert {i.domain: i.version for i in model.opset_import}["Vastai"] == 1
    plain = onnx.inliner.inline_local_functions(model)
    assert not {node.domain for node in plain.graph.node} - {""}
    given = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    wanted = run_program(program, inputs, checkpoint)["logits"]
    assert run_model(plain, {**inputs, **given})["logits"].tobytes() == wanted.tobytes()


# -- which linears


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (("*.mlp.*",), (), (f"{DOWN}/MatMul",)),
        (("model.layers.*.self_attn.*", HEAD), (), (f"{Q}/MatMul", f"{HEAD}/MatMul")),
        (("*",), ("lm_*", "model.layers.0.mlp.*"), (f"{Q}/MatMul", f"{EMBED}/Gather")),
        (("*_proj",), ("*.q_proj",), (f"{DOWN}/MatMul",)),
        (("lm_hea?",), (), (f"{HEAD}/MatMul",)),
        (("model.embed*",), (), (f"{EMBED}/Gather",)),
        (("*",), (EMBED, "*_proj"), (f"{HEAD}/MatMul",)),
    ],
)
def test_include_and_exclude(
    include: tuple[str, ...], exclude: tuple[str, ...], chosen: tuple[str, ...]
):
    report = run_pass(AnnotateInt8QDQ(include=include, exclude=exclude), linears())
    assert report.rewrites == chosen
    assert report.skips == ()


@pytest.mark.parametrize(
    ("rewriting", "message"),
    [
        (AnnotateInt8QDQ(include=("*.mpl.*",)), "include: '*.mpl.*' matches no module"),
        (
            AnnotateInt8QDQ(include=(HEAD, "*.input_layernorm")),
            "include: '*.input_layernorm' matches model.layers.0.input_layernorm, no linear",
        ),
        (
            AnnotateInt8QDQ(include=INCLUDE, exclude=("*.self_attn",)),
            f"exclude: '*.self_attn' matches {ATTENTION}, no linear",
        ),
        (AnnotateInt8QDQ(include=("*.mlp",)), f"include: '*.mlp' matches {MLP}, no linear"),
        (AnnotateInt8QDQ(), "include: '*.mlp.gate_proj' matches no module"),
    ],
)
def test_a_glob_without_a_linear_is_an_error(rewriting: AnnotateInt8QDQ, message: str):
    program = linears()
    before = text_of(program)
    with pytest.raises(PassError) as caught:
        rewriting.run(program)
    assert caught.value.message == message
    assert caught.value.where == "annotate-int8-qdq"
    assert caught.value.hint == f"the modules here are {HEAD}, {EMBED}, {DOWN}, {Q}, ..."
    assert text_of(program) == before


# -- joined weights


JOINED = tuple(f"{ATTENTION}.{part}_proj" for part in "qkv")


def joined() -> Program:
    """q, k and v as one product, which `fuse-qkv` leaves."""
    program = linears()
    parts = [source(f"{JOINED[0]}.weight", (4, 6), "bfloat16")]
    parts += [source(f"{module}.weight", (2, 6), "bfloat16") for module in JOINED[1:]]
    program.weights[f"{Q}.weight"] = transpose(concat([cast(part, "float32") for part in parts]))
    return program


def test_a_joined_weight_is_quantized_by_its_own_channels():
    program = joined()
    report = run_pass(AnnotateInt8QDQ(include=(f"{ATTENTION}.*",)), program)
    assert report.rewrites == (f"{Q}/MatMul",)
    keys = {name: program.weights[name].key for name in (f"{Q}.weight", f"{Q}.weight_scale")}
    parts = [f"{module}.weight" for module in JOINED]
    assert keys == {
        f"{Q}.weight": f"concat({', '.join(f'quantize({part})' for part in parts)})",
        f"{Q}.weight_scale": f"concat({', '.join(f'scale({part})' for part in parts)})",
    }


def test_a_joined_weight_is_not_quantized_in_part():
    rewriting = AnnotateInt8QDQ(include=(f"{ATTENTION}.*",), exclude=(JOINED[2],))
    assert reasons(run_pass(rewriting, joined())) == {
        f"{Q}/MatMul": f"its weight joins {JOINED[2]}, which is left out, and {JOINED[0]}"
    }


# -- what is declined


DECLINED = {
    "a weight that is computed": (
        {
            f'MatMul (normed, "{Q}.weight")': "MatMul (normed, wide)",
            f'["{Q}/MatMul"]': f'["{Q}/Cast"] wide = Cast <to: int = 1> ("{Q}.weight")\n'
            f'["{Q}/MatMul"]',
        },
        "it reads wide, expected MatMul(x, W[in, out])",
    ),
    "a Gemm": (
        {
            f'MatMul (normed, "{Q}.weight")': f'Gemm (rows, "{Q}.weight")',
            f'["{Q}/MatMul"] product': f'["{Q}/Squeeze"] rows = Squeeze (normed)\n'
            f'["{Q}/MatMul"] flat',
            f'["{Q}/Add"]': f'["{Q}/Reshape"] product = Unsqueeze (flat, first)\n["{Q}/Add"]',
            "[1, 4, 5] logits)": "[1, 4, 5] logits)\n<int64[1] first = {0}>",
        },
        f"it reads {Q}.weight, expected MatMul(x, W[in, out])",
    ),
    "a weight with two readers": (
        {
            "=> (float[1, 4, 5] logits)": "=> (float[1, 4, 5] logits, float[6, 8] z)",
            '["lm_head/MatMul"]': f'["other/Neg"] z = Neg ("{Q}.weight")\n["lm_head/MatMul"]',
        },
        f"its weight is read by ['{Q}/MatMul', 'other/Neg'], expected one node",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_a_linear_of_another_form_is_declined(case: str):
    replaced, reason = DECLINED[case]
    report = run_pass(AnnotateInt8QDQ(include=INCLUDE), linears(changed(BEFORE, replaced)))
    assert {skip.node: skip.reason for skip in report.skips} == {f"{Q}/MatMul": reason}
    assert report.rewrites == (f"{DOWN}/MatMul",)


def test_a_weight_of_integers_is_declined():
    program = linears()
    whole = source(f"{Q}.weight", (8, 6), "int32")
    program.weights[f"{Q}.weight"] = transpose(whole)
    report = AnnotateInt8QDQ(include=INCLUDE).run(program)
    assert {skip.node: skip.reason for skip in report.skips} == {
        f"{Q}/MatMul": "its weight is int32"
    }


# -- beside other passes


@pytest.mark.parametrize("operator", OPERATORS)
def test_stored_weights_lie_as_the_checkpoint_s(traced_models: TracedModels, operator: Operator):
    program, checkpoint = (
        traced_models.programs("gqa").programs["prefill"],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=3, valid=9, vocabulary=VOCABULARY)
    run_pass(AnnotateInt8QDQ(operator=operator), program)
    wanted = run_program(program, inputs, checkpoint)
    assert run_pass(StoreWeights(dtype="bfloat16"), program).skips == ()
    for name, weight in program.weights.items():
        if weight.dtype == "int8":
            assert weight.key == f"quantize({name})"
    assert program.weights["lm_head.weight"].dtype == "bfloat16"  # as the checkpoint has it
    found = run_program(program, inputs, checkpoint)
    for output, array in wanted.items():
        assert found[output].tobytes() == array.tobytes(), output
    once = text_of(program)
    assert run_pass(StoreWeights(dtype="bfloat16"), program).rewrites == ()
    assert text_of(program) == once


def _added_to_the_weight(program: Program) -> None:
    """x @ (W + bias): the bias does not even have to fit."""
    product, total = (
        node for node in program.graph.nodes if node.name in (f"{Q}/MatMul", f"{Q}/Add")
    )
    total.inputs[0] = product.inputs[1]
    product.inputs[1] = total.outputs[0]
    reader = next(n for n in program.graph.nodes if n.name == f"{ATTENTION}/Transpose")
    reader.inputs[0] = product.outputs[0]


def _scaled_with_the_product(program: Program) -> None:
    """(x @ Wq + bias) * scale."""
    nodes = {node.name: node for node in program.graph.nodes}
    wide = nodes[f"{Q}/DequantizeLinear"]
    wide.op, wide.attrs = "Cast", {"to": 1}
    scales = wide.inputs.pop()
    total = nodes[f"{Q}/Add"].outputs[0]
    readers = list(total.outputs)
    scaled = gs.Variable("scaled")
    program.graph.nodes.append(gs.Node("Mul", f"{Q}/Mul", inputs=[total, scales], outputs=[scaled]))
    for reader in readers:
        reader.inputs = [scaled if tensor is total else tensor for tensor in reader.inputs]


@pytest.mark.parametrize("operator", OPERATORS)
def test_biases_stay_outside(operator: Operator):
    program = linears()
    (invariant,) = KeepQKVBias().invariants(program)
    run_pass(AnnotateInt8QDQ(include=INCLUDE, operator=operator), program)
    assert invariant.violations(program) == ()
    run_pass(StoreWeights(), program)
    assert invariant.violations(program) == ()


@pytest.mark.parametrize(
    ("broken", "violation"),
    [
        (
            _added_to_the_weight,
            f"{Q}.bias is added at {Q}/Add, not to the product with {Q}.weight",
        ),
        (
            _scaled_with_the_product,
            f"{Q}.bias is added to {Q}/MatMul, whose int8 weight is not dequantized",
        ),
    ],
)
def test_a_bias_that_is_folded_into_the_product(broken: Callable[[Program], None], violation: str):
    program = linears()
    (invariant,) = KeepQKVBias().invariants(program)
    run_pass(AnnotateInt8QDQ(include=INCLUDE), program)
    broken(program)
    assert invariant.violations(program) == (violation,)


def test_options():
    assert AnnotateInt8QDQ() == AnnotateInt8QDQ(
        include=SEVEN_LINEARS,
        exclude=(),
        bits=8,
        group_size=0,
        activations="float",
        operator="qdq",
    )
    assert AnnotateInt8QDQ().promise() == Contract.exact()
    assert AnnotateInt8QDQ(activations="int8").promise().kind == "rounds"
    assert AnnotateInt8QDQ(activations="int8-in-prefill").promise().kind == "rounds"
    assert not AnnotateInt8QDQ.changes_signature
    assert AnnotateInt8QDQ().required() == ()
    assert {"fuse-qkv", "fuse-gate-up", "cast-dtype"} <= set(AnnotateInt8QDQ.after)
    assert "annotate-int8-qdq" in StoreWeights.after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits is 3, expected 8 or 4"),
        ({"group_size": -8}, "group_size is -8, expected 0 or more"),
        (
            {"group_size": 8, "operator": "vastai"},
            "QuantizedLinearPerChannel has no groups: group_size with vastai is 0",
        ),
    ],
)
def test_options_that_it_refuses(options: dict[str, int | str], message: str):
    with pytest.raises(ConfigError) as caught:
        build_passes([PassSpec("annotate-int8-qdq", options, "model.yaml:3:5")], folder=Path())
    refusal = f"pass 'annotate-int8-qdq' refuses its options: {message}"
    assert (caught.value.message, caught.value.where) == (refusal, "model.yaml:3:5")
