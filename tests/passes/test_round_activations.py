"""What products with 16-bit weights take is rounded to 16 bits, in prefill."""

import numpy as np
import pytest
from attention_graph import CONTEXT, LENGTHS, TEXT, random_inputs
from program_runs import random_parameters, reasons, run_pass, run_program
from program_text import Golden, changed, linears_from_text, program_from_text, text_of
from traced_models import TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Program
from compiler.contracts.weights import DTYPES
from compiler.numerics.measured_pass import MeasuredPhase
from passes.annotate_int8_qdq import AnnotateInt8QDQ
from passes.cast_dtype import CastDtype
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.insert_strided_slice import InsertStridedSlice
from passes.pack_weights import PackWeights
from passes.plan_kv_cache import PlanKVCache
from passes.round_activations import Dtype, RoundActivations
from passes.store_kv_cache import CacheDtype, StoreKVCache
from passes.store_weights import StorageDtype, StoreWeights

# Two linears read one tensor, which a residual reads as well.
TEXT_OF_LINEARS = """
main (
  int64[1, 4] input_ids, float[9, 6] "embed.weight", float[6, 6] "gate.weight",
  float[6, 6] "up.weight", float[6, 5] "lm_head.weight"
) => (float[1, 4, 5] logits)
{
  ["embed/Gather"] h = Gather <axis: int = 0> ("embed.weight", input_ids)
  ["gate/MatMul"] gate = MatMul (h, "gate.weight")
  ["up/MatMul"] up = MatMul (h, "up.weight")
  ["mlp/Mul"] both = Mul (gate, up)
  ["resid/Add"] sum = Add (both, h)
  ["lm_head/MatMul"] logits = MatMul (sum, "lm_head.weight")
}
"""
ROUNDED = ("gate/MatMul/rounded/Cast", "lm_head/MatMul/rounded/Cast")
DTYPES_OF_IT: tuple[Dtype, ...] = ("bfloat16", "float16")


def stored(dtype: StorageDtype = "bfloat16") -> Program:
    program = linears_from_text(TEXT_OF_LINEARS)
    run_pass(StoreWeights(dtype=dtype), program)
    return program


def attention(dtype: CacheDtype) -> Program:
    program = program_from_text(TEXT, context=CONTEXT)
    for rewriting in (FoldMask(), PlanKVCache(), FuseAttention(), StoreKVCache(dtype)):
        run_pass(rewriting, program)
    return program


def casts(program: Program) -> list[str]:
    return [node.name for node in program.graph.nodes if node.name.endswith("/rounded/Cast")]


# -- what is rewritten


@pytest.mark.parametrize("is_packed", [False, True])
def test_golden(golden: Golden, is_packed: bool):
    program = stored()
    if is_packed:
        run_pass(PackWeights(), program)
    report = run_pass(RoundActivations(), program)
    kind = "packed" if is_packed else "after"
    golden(f"round-activations.{kind}.txt", text_of(program))
    assert (report.rewrites, report.skips) == (ROUNDED, ())


def test_packing_before_or_behind_is_the_same():
    before, behind = stored(), stored()
    for rewriting in (PackWeights(), RoundActivations()):
        run_pass(rewriting, before)
    for rewriting in (RoundActivations(), PackWeights()):
        run_pass(rewriting, behind)
    assert sorted(text_of(before).splitlines()) == sorted(text_of(behind).splitlines())


def test_the_queries_of_attention(golden: Golden):
    program = attention("bfloat16")
    report = run_pass(RoundActivations(), program)
    golden("round-activations.attention.txt", text_of(program))
    assert report.rewrites == ("attn/FusedAttention/rounded/Cast",)
    assert report.skips == ()


@pytest.mark.parametrize("dtype", DTYPES_OF_IT)
def test_a_second_run_rewrites_nothing(dtype: Dtype):
    for program in (stored(dtype), attention(dtype)):
        assert run_pass(RoundActivations(dtype), program).rewrites
        once = text_of(program)
        report = run_pass(RoundActivations(dtype), program)
        assert (report.rewrites, report.skips) == ((), ())
        assert text_of(program) == once


# -- numbers


@pytest.mark.parametrize("dtype", DTYPES_OF_IT)
def test_each_product_reads_rounded_rows(dtype: Dtype):
    program = stored(dtype)
    parameters = random_parameters(program)
    inputs = {"input_ids": np.array([[3, 0, 8, 3]])}
    run_pass(RoundActivations(dtype), program)
    found = run_program(program, {**inputs, **parameters})["logits"]

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(DTYPES[dtype]).astype(np.float32)

    def matrix(name: str) -> np.ndarray:
        return parameters[f"{name}.weight"].astype(np.float32)

    h = matrix("embed")[inputs["input_ids"]]
    gate, up = (rounded(h) @ matrix(name).T for name in ("gate", "up"))
    wanted = rounded(gate * up + h) @ matrix("lm_head").T
    # A sum in another order may tip a rounding over.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=np.abs(wanted).max() * 2.0**-8)


@pytest.mark.parametrize("dtype", DTYPES_OF_IT)
def test_attention_reads_rounded_queries(dtype: Dtype):
    plain, program = attention(dtype), attention(dtype)
    run_pass(RoundActivations(dtype), program)
    largest = 0.0
    for past, valid in LENGTHS:
        inputs = StoreKVCache(dtype).adapt_inputs(
            random_inputs(planned(), past=past, valid=valid), program
        )
        wanted = run_program(plain, inputs)["logits"][:, :valid]
        found = run_program(program, inputs)["logits"][:, :valid]
        error = np.abs(found - wanted).max() / np.abs(wanted).max()
        assert error < 0.05
        largest = max(largest, error)
    assert largest > 1e-5, "rounding is to be seen"


def planned() -> Program:
    program = program_from_text(TEXT, context=CONTEXT)
    for rewriting in (FoldMask(), PlanKVCache(), FuseAttention()):
        run_pass(rewriting, program)
    return program


@pytest.mark.parametrize("dtype", DTYPES_OF_IT)
def test_it_keeps_its_contract_on_a_traced_model(traced_models: TracedModels, dtype: Dtype):
    """Followed through the passes; in float64, where nothing is rounded, nothing changes."""
    small = traced_models.probe("gqa")
    program = small.programs.programs["prefill"]
    phase = MeasuredPhase(program, small.read, vocabulary=small.vocabulary)
    rewrites: tuple[str, ...] = ()
    for rewriting in (
        FoldConstants(),
        FoldMask(),
        PlanKVCache(),
        InsertStridedSlice(),
        FuseAttention(),
        StoreKVCache(dtype),
        StoreWeights(dtype),
        RoundActivations(dtype),
    ):
        rewrites = run_pass(rewriting, program).rewrites
        measured = phase.follow(rewriting, program)
    # Of each of two layers: q, k and v together; the queries; o; gate and up; down.
    assert len(rewrites) == 2 * 5
    assert 1e-5 < measured.error < 0.5


# -- what is declined


def test_the_row_that_makes_the_logits():
    program = linears_from_text(TEXT_OF_LINEARS)
    run_pass(InsertStridedSlice(position="last"), program)
    run_pass(StoreWeights(dtype="bfloat16"), program)
    report = run_pass(RoundActivations(), program)
    assert report.rewrites == ROUNDED[:1]
    assert {skip.node: skip.reason for skip in report.skips} == {
        "lm_head/MatMul": "it multiplies the one row that makes the logits"
    }


def test_operands_of_16_bits():
    program = linears_from_text(TEXT_OF_LINEARS)
    run_pass(CastDtype(dtype="bfloat16"), program)
    run_pass(StoreWeights(), program)
    before = text_of(program)
    assert reasons(run_pass(RoundActivations(), program)) == {
        "gate/MatMul": "h is not float32",
        "up/MatMul": "h is not float32",
        "lm_head/MatMul": "sum is not float32",
    }
    assert text_of(program) == before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_of_another_dtype(dtype: StorageDtype):
    program = stored(dtype)
    before = text_of(program)
    assert reasons(run_pass(RoundActivations(), program)) == {
        "graph": "no linear's weight and no cache that FusedAttention reads is stored in bfloat16"
    }
    assert text_of(program) == before


@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_caches_of_another_dtype(dtype: CacheDtype):
    program = attention(dtype)
    assert "graph" in reasons(run_pass(RoundActivations(), program))
    assert casts(program) == []


def test_int8_weights_are_left_alone():
    program = linears_from_text(
        changed(TEXT_OF_LINEARS, {'"gate': '"a.gate_proj', '"up': '"a.up_proj'})
    )
    run_pass(AnnotateInt8QDQ(include=("*gate_proj",)), program)
    run_pass(StoreWeights(dtype="bfloat16"), program)
    report = run_pass(RoundActivations(), program)
    assert report.rewrites == ("a.up_proj/MatMul/rounded/Cast", "lm_head/MatMul/rounded/Cast")
    product = next(node for node in program.graph.nodes if node.name == "a.gate_proj/MatMul")
    assert product.inputs[0].name == "embed/Cast", "as the embedding gives it"


def test_options():
    assert RoundActivations() == RoundActivations("bfloat16")
    assert RoundActivations().promise() == Contract.roundings("bfloat16")
    assert RoundActivations("float16").promise() == Contract.roundings("float16")
    assert RoundActivations.phases == ("prefill",)
    assert not RoundActivations.changes_signature
