"""Groups of inputs with a scale of their own, on the model and on its probe."""

from pathlib import Path

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import Golden, linears_from_text, text_of
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import PassError
from compiler.contracts.quantization import SEVEN_LINEARS
from compiler.contracts.weight_values import value
from compiler.numerics.reference_run import run_model
from compiler.pass_order import PlannedPass
from compiler.stages.rewrite import rewrite
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.keep_qkv_bias import KeepQKVBias
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "annotate-int8-qdq.before.txt").read_text(
    encoding="utf-8"
)
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
ALL = (*SEVEN_LINEARS, "lm_head", "model.embed_tokens")


def test_golden(golden: Golden):
    program = linears_from_text(BEFORE)
    rewriting = AnnotateInt8QDQ(
        (Q, DOWN, "model.embed_tokens"), group_size=2, bits=4, activations="int8"
    )
    report = run_pass(rewriting, program)
    golden("annotate-int8-qdq.groups.txt", text_of(program))
    assert report.rewrites == (f"{Q}/MatMul", f"{DOWN}/MatMul", "model.embed_tokens/Gather")


@pytest.mark.parametrize(
    ("include", "group", "module", "inputs", "sizes"),
    [
        ((Q, DOWN), 3, DOWN, 8, "2"),
        ((Q,), 4, Q, 6, "2, 3, 6"),
        ((Q, DOWN), 128, Q, 6, "2"),
        (("model.embed_tokens",), 4, "model.embed_tokens", 6, "2, 3, 6"),
    ],
)
def test_a_size_that_does_not_divide_is_an_error(
    include: tuple[str, ...], group: int, module: str, inputs: int, sizes: str
):
    program = linears_from_text(BEFORE)
    before = text_of(program)
    with pytest.raises(PassError) as caught:
        AnnotateInt8QDQ(include, group_size=group).run(program)
    assert caught.value.message == (
        f"{module} has {inputs} inputs, which groups of {group} do not divide"
    )
    assert caught.value.hint == (
        f"sizes that divide the inputs of all that is included: {sizes}; "
        "0 for one scale for each output"
    )
    assert text_of(program) == before


@pytest.mark.parametrize("bits", [8, 4])
def test_traced_models(traced_models: TracedModels, bits: int):
    """To the bit what the float graph gives with the weights that `adapt_weights` states."""
    assert bits in (8, 4)
    program = traced_models.programs("gqa").programs["prefill"]
    checkpoint = traced_models.checkpoint("gqa")
    inputs = traced_inputs(program, past=3, valid=9, vocabulary=VOCABULARY)
    (invariant,) = KeepQKVBias().invariants(program)
    before = program.model()
    old = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    rewriting = AnnotateInt8QDQ(ALL, group_size=8, bits=bits)
    assert run_pass(rewriting, program).skips == ()
    wanted = run_model(before, {**inputs, **rewriting.adapt_weights(old, program)})
    found = run_program(program, inputs, checkpoint)
    for output, array in wanted.items():
        assert found[output].tobytes() == array.tobytes(), output
    assert run_pass(StoreWeights(dtype="float16"), program).rewrites == ()
    assert {w.dtype for w in program.weights.values()} == {"int8", "float32"}
    assert invariant.violations(program) == ()
    stored = run_program(program, inputs, checkpoint)
    assert stored["logits"].tobytes() == found["logits"].tobytes()
    # Finer than one scale for a channel.
    plain = run_model(before, {**inputs, **old})["logits"]
    program = traced_models.programs("gqa").programs["prefill"]
    run_pass(AnnotateInt8QDQ(ALL, bits=bits), program)
    coarse = run_program(program, inputs, checkpoint)["logits"]
    assert np.square(found["logits"] - plain).sum() < np.square(coarse - plain).sum()


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_a_build_does_the_same_to_the_probe(traced_models: TracedModels, name: str):
    """At its own widths (24 and 48, 40), which 16 does not divide, or not all."""
    include = ("*.self_attn.[qkv]_proj",)
    programs, probe = traced_models.programs(name), traced_models.probe(name)
    size = 28 if name == "gqa" else 32
    passes = [PlannedPass(AnnotateInt8QDQ(include, group_size=size), "the test")]
    done = rewrite(programs, passes, probe=probe)
    assert [record.rewrites for record in done.records] == [6, 6]
    assert [record.error for record in done.records] == [0, 0]
    scales = [w for one in programs for w in one.weights.values() if w.op == "scale"]
    assert {weight.shape[1] for weight in scales} == {2}


@pytest.mark.parametrize(
    ("include", "group", "on_probe"),
    [
        (SEVEN_LINEARS, 64, 8),
        (SEVEN_LINEARS, 4, 4),
        (SEVEN_LINEARS, 0, 0),
        (("*.down_proj",), 16, 20),
        (("*.down_proj",), 10, 10),
    ],
)
def test_the_probe_s_groups(
    traced_models: TracedModels, include: tuple[str, ...], group: int, on_probe: int
):
    """Its widths are 24 and 40."""
    probe = traced_models.probe("gqa").programs.programs["decode"]
    rewriting = AnnotateInt8QDQ(include, group_size=group).on_probe(probe)
    assert rewriting == AnnotateInt8QDQ(include, group_size=on_probe)
