"""What is known at build time is evaluated; what does nothing is removed."""

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from program_runs import reasons, run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import CONSTANT_BYTES, Phase
from passes.fold_constants import FoldConstants

BEFORE = (Path(__file__).parent / "golden" / "fold-constants.before.txt").read_text(
    encoding="utf-8"
)


def test_golden(golden: Golden):
    program = program_from_text(BEFORE)
    report = run_pass(FoldConstants(), program)
    golden("fold-constants.after.txt", text_of(program))
    assert report.rewrites == (
        "a/Identity",
        "a/Slice",
        "a/CastLike",
        "a/Concat",
        "b/CastLike",
        "b/Add",
    )
    assert report.skips == ()


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    run_pass(FoldConstants(), program)
    once = text_of(program)
    assert run_pass(FoldConstants(), program).rewrites == ()
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_bits():
    random = np.random.default_rng(1)
    inputs = {
        "x": random.standard_normal((1, 4, 6), dtype=np.float32),
        "ids": random.integers(-9, 9, (1, 4)),
        "norm.weight": random.standard_normal(6, dtype=np.float32),
    }
    program = program_from_text(BEFORE)
    wanted = run_program(program, inputs)
    run_pass(FoldConstants(), program)
    found = run_program(program, inputs)
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in wanted.items()
    }


@pytest.mark.parametrize(
    ("phase", "past", "valid"),
    [("prefill", 0, WINDOW), ("prefill", 6, 3), ("decode", 0, 1), ("decode", 11, 1)],
)
def test_traced_models_give_the_same_bits(
    traced_models: TracedModels, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    signature = program.inputs(), program.outputs()
    assert len(run_pass(FoldConstants(), program).rewrites) > 40
    assert (program.inputs(), program.outputs()) == signature
    found = run_program(program, inputs, checkpoint)
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in wanted.items()
    }


def test_nothing_constant_is_left_in_a_trace(traced_models: TracedModels):
    for program in traced_models.programs("mha"):
        run_pass(FoldConstants(), program)
        left = {node.op for node in program.graph.nodes}
        assert not left & {"Identity", "CastLike", "Constant"}
        for node in program.graph.nodes:
            is_known = all(isinstance(tensor, gs.Constant) for tensor in node.inputs)
            assert not is_known or node.op == "Range"


# -- what is declined

RANGE = """
main (int64[1] x) => (int64[3] y)
< int64 zero = {0}, int64 length = {3}, int64 one = {1} >
{
  ["a/Range"] counted = Range (zero, length, one)
  ["a/Add"] y = Add (counted, x)
}
"""


def test_a_range_stays_however_short_it_is():
    program = program_from_text(RANGE)
    assert reasons(run_pass(FoldConstants(), program)) == {
        "a/Range": "it is as long as a number says, and may be any length"
    }


LARGE = """
main (float[1] x) => (float[500] y)
< int64[1] length = {500}, float value = {2} >
{
  ["a/Expand"] large = Expand (value, length)
  ["a/Mul"] y = Mul (large, x)
}
"""


def test_a_result_over_the_limit_is_a_parameter_s_place():
    program = program_from_text(LARGE)
    before = text_of(program)
    assert reasons(run_pass(FoldConstants(), program)) == {
        "a/Expand": f"its result of 2000 bytes is over {CONSTANT_BYTES}"
    }
    assert text_of(program) == before
    assert run_pass(FoldConstants(), program_from_text(LARGE.replace("500", "256"))).rewrites == (
        "a/Expand",
    )


def test_a_cast_that_would_be_too_large_stays_as_it_is():
    values = ", ".join(["1"] * 200)
    program = program_from_text(
        f"main (int64[200] x) => (int64[200] y) < float[200] c = {{{values}}} >\n"
        '{ ["a/CastLike"] large = CastLike (c, x)\n ["a/Add"] y = Add (large, x) }'
    )
    before = text_of(program)
    assert reasons(run_pass(FoldConstants(), program)) == {
        "a/CastLike": f"its result of 1600 bytes is over {CONSTANT_BYTES}"
    }
    assert text_of(program) == before


def test_an_identity_that_makes_an_output_is_kept():
    program = program_from_text(
        'main (float[3] x) => (float[3] y, float[3] z)\n{ ["a/Identity"] y = Identity (x)\n'
        '["b/Neg"] n = Neg (x)\n["b/Identity"] z = Identity (n) }'
    )
    before = text_of(program)
    assert reasons(run_pass(FoldConstants(), program)) == {
        "a/Identity": "its output is the graph's",
        "b/Identity": "its output is the graph's",
    }
    assert text_of(program) == before


@pytest.mark.parametrize(
    "replaced",
    [
        {"int64[1] zero = {0}": "int64[1] zero = {1}"},
        {"{9223372036854775807}": "{6}"},
        {
            "Slice (same, zero, end, axis, one)": "Slice (same, zero, end, axis, step)",
            "int64 four = {4}": "int64 four = {4}, int64[1] step = {2}",
        },
    ],
)
def test_a_slice_that_cuts_is_kept(replaced: dict[str, str]):
    text = changed(BEFORE, {'Mul (whole, "norm.weight")': "Mul (whole, half)", **replaced})
    text = changed(
        text,
        {
            "float[1, 2, 12] y": "float[1, m, n] y",
            "{2}, int64[1] twelve = {12}": "{1}, int64[1] twelve = {-1}",
        },
    )
    program = program_from_text(text)
    assert "a/Slice" not in run_pass(FoldConstants(), program).rewrites
    assert "a/Slice" in {node.name for node in program.graph.nodes}


def test_what_is_random_is_not_folded():
    program = program_from_text(
        "main (float[2] x) => (float[2] y) < float[2] p = {0.5, 0.5} >\n"
        '{ ["a/Bernoulli"] b = Bernoulli (p)\n ["a/Add"] y = Add (b, x) }'
    )
    assert run_pass(FoldConstants(), program).rewrites == ()


def test_options():
    assert FoldConstants().promise() == Contract.exact()
    assert (FoldConstants.name, FoldConstants.required(FoldConstants())) == ("fold-constants", ())
    assert FoldConstants.phases == ("prefill", "decode")
