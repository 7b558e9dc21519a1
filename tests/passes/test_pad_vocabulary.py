"""The head is padded to a multiple, and its padding cut off again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from program_runs import (
    random_parameters,
    reasons,
    run_pass,
    run_program,
    traced_inputs,
)
from program_text import Golden, changed, linears_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.config import PassSpec, build_passes
from compiler.contracts.errors import ConfigError
from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase, Program
from compiler.contracts.weights import source
from passes.insert_strided_slice import InsertStridedSlice
from passes.pad_vocabulary import PadVocabulary
from passes.store_weights import StoreWeights

BEFORE = (Path(__file__).parent / "golden" / "pad-vocabulary.before.txt").read_text(
    encoding="utf-8"
)
IDS = np.array([[3, 20, 0, 3]])


def tied(text: str = BEFORE) -> Program:
    """The head is the embedding under its own name."""
    program = linears_from_text(text)
    program.weights["embed.weight"] = source("lm_head.weight", (21, 6), "float32")
    return program


@pytest.mark.parametrize(("is_tied", "multiple"), [(True, 16), (False, 8)])
def test_golden(golden: Golden, is_tied: bool, multiple: int):
    program = tied() if is_tied else linears_from_text(BEFORE)
    report = run_pass(PadVocabulary(multiple=multiple), program)
    golden(f"pad-vocabulary.{'tied' if is_tied else 'to-8'}.txt", text_of(program))
    assert report.rewrites == ("lm_head/MatMul",)
    assert report.skips == ()


def test_a_second_run_rewrites_nothing():
    program = tied()
    run_pass(PadVocabulary(), program)
    once = text_of(program)
    assert reasons(run_pass(PadVocabulary(), program)) == {
        "lm_head/MatMul": "its 32 outputs are a multiple of 16 already"
    }
    assert text_of(program) == once


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_small_graph_gives_the_same_numbers(is_tied: bool):
    program = tied() if is_tied else linears_from_text(BEFORE)
    wanted = run_program(program, {"ids": IDS, **random_parameters(program)})["logits"]
    run_pass(PadVocabulary(), program)
    parameters = random_parameters(program)
    assert parameters["lm_head.weight"].shape == (6, 32)
    assert not parameters["lm_head.weight"][:, 21:].any()
    found = run_program(program, {"ids": IDS, **parameters})["logits"]
    assert found.shape == wanted.shape == (1, 4, 21)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mha", "gqa"])
@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, WINDOW), ("prefill", 5, 4), ("decode", 8, 1)]
)
def test_traced_models(traced_models: TracedModels, name: str, phase: Phase, past: int, valid: int):
    program, checkpoint = (
        traced_models.programs(name).programs[phase],
        traced_models.checkpoint(name),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    signature = program.inputs(), program.outputs()
    assert run_pass(PadVocabulary(multiple=24), program).rewrites == ("lm_head/MatMul",)
    assert (program.inputs(), program.outputs()) == signature
    assert program.weights["lm_head.weight"].shape == (56 if name == "gqa" else 64, 96)
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_and_the_embedding_stay_the_same_bytes(traced_models: TracedModels, dtype):
    programs = traced_models.programs("mha")
    for program in programs:
        run_pass(PadVocabulary(multiple=24), program)
        run_pass(StoreWeights(dtype=dtype), program)
        names = ("lm_head.weight", "model.embed_tokens.weight")
        head, table = (program.weights[name] for name in names)
        assert head == table
        assert head.shape == (96, 64)
    tables = [key for key in programs.stored_weights() if "embed_tokens" in key]
    assert len(tables) == 1
    assert f"zeros(16, 64, {dtype})" in tables[0]


def test_it_stands_behind_the_slice_of_the_wanted_row():
    program = linears_from_text(BEFORE)
    run_pass(InsertStridedSlice(position="last"), program)
    assert run_pass(PadVocabulary(), program).rewrites == ("lm_head/MatMul",)
    assert [spec.shape for spec in program.outputs()] == [(1, 1, 21)]


# -- what is declined


def _declined(program: Program) -> dict[str, str]:
    before = text_of(program)
    found = reasons(run_pass(PadVocabulary(), program))
    assert text_of(program) == before
    return found


def test_a_multiple_already(traced_models: TracedModels):
    assert VOCABULARY == 80
    assert _declined(traced_models.programs("mha").programs["decode"]) == {
        "lm_head/MatMul": "its 80 outputs are a multiple of 16 already"
    }


def test_no_product_makes_the_logits():
    program = linears_from_text(changed(BEFORE, {"logits = Add (": "logits = Sub ("}))
    assert _declined(program) == {"logits": "no MatMul makes them"}


def test_a_weight_with_several_readers():
    text = changed(
        BEFORE,
        {
            "(float[1, 4, 21] logits)": "(float[1, 4, 21] logits, float[6, 21] other)",
            '["lm_head/Add"]': '["other/Neg"] other = Neg ("lm_head.weight")\n["lm_head/Add"]',
        },
    )
    assert _declined(linears_from_text(text)) == {
        "lm_head/MatMul": "lm_head.weight is read by ['lm_head/MatMul', 'other/Neg']"
    }


def test_a_stored_weight():
    program = linears_from_text(BEFORE)
    run_pass(StoreWeights(), program)
    assert _declined(program) == {"lm_head/MatMul": "its weight is stored otherwise than [in, out]"}


def test_a_tied_table_that_is_no_embedding_s():
    text = changed(
        BEFORE,
        {
            "(float[1, 4, 21] logits)": "(float[1, 4, 21] logits, float[21, 6] other)",
            '["norm/Tanh"]': '["other/Neg"] other = Neg ("embed.weight")\n["norm/Tanh"]',
        },
    )
    assert _declined(tied(text)) == {
        "lm_head/MatMul": "embed.weight is stored once with its weight, and other/Neg reads it"
    }
    assert run_pass(PadVocabulary(), linears_from_text(text)).rewrites == ("lm_head/MatMul",)


def test_options():
    assert PadVocabulary() == PadVocabulary(multiple=16)
    assert PadVocabulary().promise() == Contract.close(rtol=1e-5, atol=1e-5)
    assert PadVocabulary.after == ("insert-strided-slice",)
    assert "pad-vocabulary" in StoreWeights.after
    assert not PadVocabulary.changes_signature


def test_the_option_is_read_from_the_yaml(tmp_path: Path):
    spec = PassSpec("pad-vocabulary", {"multiple": 32}, place="model.yaml:3:5")
    assert build_passes([spec], folder=tmp_path) == (PadVocabulary(multiple=32),)
    with pytest.raises(ConfigError, match="refuses its options: multiple is 0, expected 1 or more"):
        build_passes([replace(spec, options={"multiple": 0})], folder=tmp_path)
