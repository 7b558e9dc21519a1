"""Activations of chosen linears, rounded to int8 token by token."""

from dataclasses import replace

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import text_of
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Arrays, Pass
from compiler.contracts.program import Program
from compiler.contracts.quantization import SEVEN_LINEARS
from compiler.numerics.program_taps import program_taps
from compiler.pass_order import PlannedPass
from compiler.stages.bisect import bisect
from compiler.stages.rewrite import Rewritten, rewrite
from passes.annotate_int8_qdq import Activations, AnnotateInt8QDQ, Operator
from passes.cast_dtype import CastDtype
from passes.fold_constants import FoldConstants
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQKV
from passes.keep_qkv_bias import KeepQKVBias

HEAD = (*SEVEN_LINEARS, "lm_head")
BEFORE = (KeepQKVBias(), FoldConstants())


def tokens_by_reader(program: Program) -> dict[str, tuple[str, ...]]:
    """QuantizedTokens node -> the modules that read it."""
    return {
        node.name: tuple(reader.name.partition("/")[0] for reader in node.outputs[0].outputs)
        for node in program.graph.nodes
        if node.op == "QuantizedTokens"
    }


def planned(*rewrites: AnnotateInt8QDQ) -> list[PlannedPass]:
    return [PlannedPass(one, "the test") for one in (*BEFORE, *rewrites)]


def rewritten(traced_models: TracedModels, name: str, one: AnnotateInt8QDQ) -> Rewritten:
    """A model and its probe after the pass, as a build runs and measures it."""
    return rewrite(traced_models.programs(name), planned(one), probe=traced_models.probe(name))


@pytest.mark.parametrize("operator", ["qdq", "vastai"])
def test_linears_that_read_one_tensor_share_it(traced_models: TracedModels, operator: Operator):
    program = traced_models.programs("gqa").programs["prefill"]
    run_pass(AnnotateInt8QDQ(HEAD, activations="int8", operator=operator), program)
    found = tokens_by_reader(program)
    wanted: dict[str, tuple[str, ...]] = {"lm_head/QuantizedTokens": ("lm_head",)}
    for layer in ("model.layers.0", "model.layers.1"):
        for first, *others in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        ):
            readers = tuple(f"{layer}.{module}" for module in (first, *others))
            wanted[f"{readers[0]}/QuantizedTokens"] = readers
    assert found == wanted


def test_a_linear_that_is_left_out_reads_what_it_read(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["decode"]
    left_out = "model.layers.0.self_attn.q_proj"
    rewriting = AnnotateInt8QDQ(("model.layers.0.self_attn.*",), (left_out,), activations="int8")
    run_pass(rewriting, program)
    readers = tokens_by_reader(program)["model.layers.0.self_attn.k_proj/QuantizedTokens"]
    assert readers == ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj")
    assert len(tokens_by_reader(program)) == 2


def test_in_prefill_alone(traced_models: TracedModels):
    programs = traced_models.programs("gqa").programs
    for program in programs.values():
        run_pass(AnnotateInt8QDQ(activations="int8-in-prefill"), program)
    assert len(tokens_by_reader(programs["prefill"])) == 8
    assert tokens_by_reader(programs["decode"]) == {}
    assert "QuantizedTokens" not in programs["decode"].functions


def test_a_second_run_rewrites_nothing(traced_models: TracedModels):
    program, rewriting = (
        traced_models.programs("mha").programs["decode"],
        AnnotateInt8QDQ(HEAD, activations="int8", group_size=8),
    )
    run_pass(rewriting, program)
    once = text_of(program)
    report = run_pass(rewriting, program)
    assert report.rewrites == ()
    assert {skip.reason for skip in report.skips} == {"its weight is quantized already"}
    assert text_of(program) == once


def test_a_joined_product_reads_it_once(traced_models: TracedModels):
    program = traced_models.programs("gqa").programs["prefill"]
    for one in (FuseQKV(), FuseGateUp(), AnnotateInt8QDQ(activations="int8")):
        run_pass(one, program)
    readers = tokens_by_reader(program)
    assert len(readers) == 8
    assert all(len(modules) == 1 for modules in readers.values())


@pytest.mark.parametrize("before", [(), (CastDtype(dtype="bfloat16"),)])
def test_taps_stay_what_the_model_computes(traced_models: TracedModels, before: tuple[Pass, ...]):
    program = traced_models.programs("gqa").programs["prefill"]
    for one in before:
        run_pass(one, program)
    wanted = program_taps(program)
    run_pass(AnnotateInt8QDQ(HEAD, activations="int8", group_size=8), program)
    assert program_taps(program) == wanted


# -- numbers


@pytest.mark.parametrize("activations", ["int8", "int8-in-prefill"])
@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_it_keeps_its_promise_on_the_probe(
    traced_models: TracedModels, name: str, activations: Activations
):
    done = rewritten(traced_models, name, AnnotateInt8QDQ(HEAD, activations=activations))
    errors = {record.phase: record.error for record in done.records[-2:]}
    assert errors["prefill"] is not None
    assert 1e-2 < errors["prefill"] < 0.5
    assert errors["decode"] is not None
    assert (errors["decode"] == 0) == (activations == "int8-in-prefill")


@pytest.mark.parametrize("operator", ["qdq", "vastai"])
def test_in_16_bits(traced_models: TracedModels, operator: Operator):
    program, checkpoint = (
        traced_models.programs("gqa").programs["decode"],
        traced_models.checkpoint("gqa"),
    )
    run_pass(CastDtype(dtype="bfloat16"), program)
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    plain = run_program(program, inputs, checkpoint)
    run_pass(AnnotateInt8QDQ(HEAD, activations="int8", operator=operator), program)
    found = run_program(program, inputs, checkpoint)
    error = np.abs(found["logits"] - plain["logits"]).max()
    assert 1e-3 < error < 0.3


class UnroundedWeights(AnnotateInt8QDQ):
    """Says that the weights stay what they were."""

    def adapt_weights(self, old: Arrays, program: Program) -> dict[str, np.ndarray]:
        del program
        return dict(old)


def test_what_the_rounding_of_activations_hides_is_seen_in_float64(traced_models: TracedModels):
    with pytest.raises(CheckFailed) as caught:
        rewritten(traced_models, "gqa", UnroundedWeights(activations="int8"))
    assert "promises rounds(atol=0.25), but in float64, too, " in caught.value.message


def test_bisecting_holds_it_to_the_weights_that_it_rounds_to(traced_models: TracedModels):
    sound = AnnotateInt8QDQ(HEAD, activations="int8", group_size=64)
    assert bisect(traced_models.probe("gqa"), planned(sound)).culprit is None
    wrong = UnroundedWeights(HEAD, activations="int8", group_size=64)
    found = bisect(traced_models.probe("gqa"), planned(wrong)).culprit
    assert found is not None
    assert found.breach.said.startswith("in float64, too, ")
    # The pass as the probe has it, whose widths 64 does not divide.
    assert found.planned.rewrite == replace(wrong, group_size=8)
