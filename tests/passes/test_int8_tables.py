"""Embeddings in int8: by themselves, and tied to the head."""

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import text_of
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import PassError
from compiler.contracts.program import Program
from compiler.contracts.quantization import SEVEN_LINEARS
from compiler.contracts.weight_values import value
from compiler.numerics.reference_run import run_model
from compiler.pass_order import PlannedPass
from compiler.stages.rewrite import rewrite
from passes.annotate_int8_qdq import AnnotateInt8QDQ, Operator
from passes.cast_dtype import CastDtype
from passes.pad_vocabulary import PadVocabulary
from passes.store_weights import StoreWeights

HEAD, EMBED = "lm_head", "model.embed_tokens"
TABLE = f"{EMBED}/Gather"


def keys(program: Program) -> dict[str, str]:
    """What the head and the embedding are stored as."""
    names = (f"{HEAD}.weight", f"{EMBED}.weight", f"{HEAD}.weight_scale", f"{EMBED}.weight_scale")
    return {name: program.weights[name].key for name in names if name in program.weights}


@pytest.mark.parametrize("padding", [0, 32])
@pytest.mark.parametrize(("operator", "group"), [("qdq", 0), ("qdq", 16), ("vastai", 0)])
def test_a_tied_head_and_embedding_are_one_tensor(
    traced_models: TracedModels, operator: Operator, group: int, padding: int
):
    program, checkpoint = (
        traced_models.programs("mha").programs["prefill"],
        traced_models.checkpoint("mha"),
    )
    inputs = traced_inputs(program, past=3, valid=9, vocabulary=VOCABULARY)
    if padding:
        run_pass(PadVocabulary(multiple=padding), program)
    before = program.model()
    old = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    rewriting = AnnotateInt8QDQ((HEAD,), operator=operator, group_size=group)
    report = run_pass(rewriting, program)
    assert (report.rewrites, report.skips) == ((f"{HEAD}/MatMul", TABLE), ())
    codes, steps = (keys(program)[f"{HEAD}.weight{part}"] for part in ("", "_scale"))
    assert keys(program) == {
        f"{HEAD}.weight": codes,
        f"{EMBED}.weight": codes,
        f"{HEAD}.weight_scale": steps,
        f"{EMBED}.weight_scale": steps,
    }
    wanted = run_model(before, {**inputs, **rewriting.adapt_weights(old, program)})
    found = run_program(program, inputs, checkpoint)
    assert found["logits"].tobytes() == wanted["logits"].tobytes()
    error = np.abs(found["logits"] - run_model(before, {**inputs, **old})["logits"]).max()
    assert 1e-4 < error < 0.1
    stored = keys(program)
    run_pass(StoreWeights(dtype="float16"), program)
    assert keys(program) == stored
    once = text_of(program)
    again = run_pass(rewriting, program)
    assert again.rewrites == ()
    assert {skip.node for skip in again.skips} == {f"{HEAD}/MatMul", TABLE}
    assert text_of(program) == once


@pytest.mark.parametrize(
    ("include", "exclude", "inside", "outside"),
    [
        ((HEAD,), (EMBED,), HEAD, EMBED),
        (("*",), (EMBED,), HEAD, EMBED),
        (("*",), (HEAD,), EMBED, HEAD),
        ((*SEVEN_LINEARS, EMBED), (), EMBED, HEAD),
    ],
)
def test_one_of_two_that_are_tied_is_an_error(
    traced_models: TracedModels,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    inside: str,
    outside: str,
):
    program = traced_models.programs("mha").programs["decode"]
    before = text_of(program)
    with pytest.raises(PassError) as caught:
        AnnotateInt8QDQ(include, exclude).run(program)
    assert caught.value.message == (
        f"{inside} is included and {outside} is not, but they are one tensor, which would be "
        "stored twice"
    )
    assert caught.value.hint == f"include both, or leave out both: exclude {inside}, too"
    assert text_of(program) == before


@pytest.mark.parametrize(
    ("include", "rewrites"),
    [
        ((HEAD,), (f"{HEAD}/MatMul",)),
        ((EMBED,), (TABLE,)),
        ((HEAD, EMBED), (f"{HEAD}/MatMul", TABLE)),
    ],
)
def test_an_untied_head_and_embedding_are_two(
    traced_models: TracedModels, include: tuple[str, ...], rewrites: tuple[str, ...]
):
    program = traced_models.programs("gqa").programs["decode"]
    assert run_pass(AnnotateInt8QDQ(include), program).rewrites == rewrites
    found = {name for name, weight in program.weights.items() if weight.dtype == "int8"}
    assert found == {f"{module}.weight" for module in include}


def test_an_embedding_whose_head_is_declined_is_declined(traced_models: TracedModels):
    program = traced_models.programs("mha").programs["decode"]
    head = next(node for node in program.graph.nodes if node.name == f"{HEAD}/MatMul")
    head.op = "Gemm"
    report = AnnotateInt8QDQ((HEAD,)).run(program)
    assert report.rewrites == ()
    assert {skip.node: skip.reason for skip in report.skips} == {
        head.name: f"it reads {HEAD}.weight, expected MatMul(x, W[in, out])",
        TABLE: f"{HEAD}/MatMul, which is tied to it, is declined",
    }


def test_in_16_bits(traced_models: TracedModels):
    program, checkpoint = (
        traced_models.programs("mha").programs["decode"],
        traced_models.checkpoint("mha"),
    )
    run_pass(CastDtype(dtype="bfloat16"), program)
    before = program.model()
    old = {name: value(weight, checkpoint.rows) for name, weight in program.weights.items()}
    rewriting = AnnotateInt8QDQ((HEAD,))
    run_pass(rewriting, program)
    inputs = traced_inputs(program, past=5, valid=1, vocabulary=VOCABULARY)
    wanted = run_model(before, {**inputs, **rewriting.adapt_weights(old, program)})
    found = run_program(program, inputs, checkpoint)
    assert found["logits"].tobytes() == wanted["logits"].tobytes()


def test_a_build_does_the_same_to_the_probe(traced_models: TracedModels):
    programs, probe = traced_models.programs("mha"), traced_models.probe("mha")
    rewriting = AnnotateInt8QDQ((*SEVEN_LINEARS, HEAD), group_size=16)
    passes = [PlannedPass(one, "the test") for one in (rewriting, StoreWeights(dtype="bfloat16"))]
    done = rewrite(programs, passes, probe=probe)
    assert [record.error for record in done.records[:2]] == [0, 0]
    matrices = [w for w in programs.stored_weights().values() if w.dtype == "int8"]
    assert len(matrices) == 15
