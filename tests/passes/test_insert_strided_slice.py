"""Only the wanted token's hidden state reaches the head."""

import numpy as np
import pytest
from attention_graph import LENGTHS, TEXT, random_inputs
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Program
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.insert_strided_slice import InsertStridedSlice

POSITIONS = [InsertStridedSlice(), InsertStridedSlice(position="last")]


def folded() -> Program:
    program = program_from_text(TEXT)
    run_pass(FoldMask(), program)
    return program


@pytest.mark.parametrize("rewriting", POSITIONS, ids=lambda one: one.position)
def test_golden(golden: Golden, rewriting: InsertStridedSlice):
    program = folded()
    report = run_pass(rewriting, program)
    golden(f"insert-strided-slice.{rewriting.position}.txt", text_of(program))
    assert report.rewrites == ("lm_head/MatMul",)
    assert report.skips == ()


@pytest.mark.parametrize("rewriting", POSITIONS, ids=lambda one: one.position)
def test_a_second_run_rewrites_nothing(rewriting: InsertStridedSlice):
    program = folded()
    run_pass(rewriting, program)
    once = text_of(program)
    assert reasons(run_pass(rewriting, program)) == {"lm_head/MatMul": "it reads one token already"}
    assert text_of(program) == once


@pytest.mark.parametrize(("past", "valid"), LENGTHS)
@pytest.mark.parametrize("rewriting", POSITIONS, ids=lambda one: one.position)
def test_the_kept_row_is_the_one_of_the_full_logits(
    rewriting: InsertStridedSlice, past: int, valid: int
):
    program = folded()
    inputs = random_inputs(program, past=past, valid=valid)
    wanted = run_program(program, inputs)
    run_pass(rewriting, program)
    found = run_program(program, inputs)
    assert found["logits"].shape == (1, 1, 5)
    kept = rewriting.adapt_outputs(wanted, inputs, program)["logits"]
    row = valid - 1 if rewriting.position == "last_valid" else 3
    np.testing.assert_array_equal(kept, wanted["logits"][:, [row]])
    np.testing.assert_allclose(found["logits"], kept, rtol=1e-5, atol=1e-5)
    for name in ("present.0.key", "present.0.value"):
        assert found[name].tobytes() == wanted[name].tobytes()


@pytest.mark.parametrize(("past", "valid"), [(0, WINDOW), (0, 1), (12, 9)])
def test_traced_models(traced_models: TracedModels, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs("mha").programs["prefill"],
        traced_models.checkpoint("mha"),
    )
    run_pass(FoldConstants(), program)
    given = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    run_pass(FoldMask(), program)
    inputs = FoldMask().adapt_inputs(given, program)
    wanted = run_program(program, inputs, checkpoint)["logits"]
    assert run_pass(InsertStridedSlice(), program).rewrites == ("lm_head/MatMul",)
    found = run_program(program, inputs, checkpoint)["logits"]
    assert found.shape == (1, 1, VOCABULARY)
    np.testing.assert_allclose(found, wanted[:, valid - 1 : valid], rtol=1e-5, atol=1e-5)


def test_last_needs_no_lengths():
    program = program_from_text(TEXT)
    assert run_pass(InsertStridedSlice(position="last"), program).rewrites == ("lm_head/MatMul",)
    assert InsertStridedSlice(position="last").required() == ()


# -- what is declined


@pytest.mark.parametrize(
    ("replaced", "declined"),
    [
        (
            {
                '["lm_head/MatMul"] logits = MatMul (attended, "lm_head.weight")': (
                    '["lm_head/MatMul"] head = MatMul (attended, "lm_head.weight")\n'
                    '["lm_head/Tanh"] logits = Tanh (head)'
                )
            },
            {"logits": "no MatMul makes them"},
        ),
        ({"logits": "scores_of_words"}, {"logits": "no MatMul makes them"}),
    ],
)
def test_another_head_is_declined(replaced: dict[str, str], declined: dict[str, str]):
    program = program_from_text(changed(TEXT, replaced))
    FoldMask().run(program)
    before = text_of(program)
    assert reasons(run_pass(InsertStridedSlice(), program)) == declined
    assert text_of(program) == before


def test_a_mask_that_was_not_folded_says_nothing_of_the_last_valid_token():
    program = program_from_text(TEXT)
    before = text_of(program)
    assert reasons(run_pass(InsertStridedSlice(), program)) == {
        "lm_head/MatMul": "there is no valid_length input: fold-mask declined"
    }
    assert text_of(program) == before


def test_a_head_with_a_bias_is_sliced_before_its_product():
    text = changed(
        TEXT,
        {
            '["lm_head/MatMul"] logits = MatMul (attended, "lm_head.weight")': (
                '["lm_head/MatMul"] head = MatMul (attended, "lm_head.weight")\n'
                '["lm_head/Add"] logits = Add (head, "lm_head.bias")'
            ),
            'float[6, 5] "lm_head.weight"': 'float[6, 5] "lm_head.weight", float[5] "lm_head.bias"',
        },
    )
    program = program_from_text(text)
    run_pass(FoldMask(), program)
    inputs = random_inputs(program, past=0, valid=3)
    wanted = run_program(program, inputs)["logits"][:, 2:3]
    assert run_pass(InsertStridedSlice(), program).rewrites == ("lm_head/MatMul",)
    np.testing.assert_allclose(run_program(program, inputs)["logits"], wanted, rtol=1e-5, atol=1e-5)


def test_options():
    assert InsertStridedSlice() == InsertStridedSlice(position="last_valid")
    assert InsertStridedSlice().required() == ("fold-mask",)
    assert InsertStridedSlice().promise() == Contract.changes("logits")
    assert InsertStridedSlice.phases == ("prefill",)
