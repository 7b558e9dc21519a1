"""x * cos + half_turn(x) * sin becomes one node."""

from pathlib import Path

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from program_text import Golden, changed, program_from_text, text_of
from traced_models import VOCABULARY, WINDOW, TracedModels

from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Phase
from passes.fold_constants import FoldConstants
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_rotary import FUSED_ROTARY, FuseRotary

BEFORE = (Path(__file__).parent / "golden" / "fuse-rotary.before.txt").read_text(encoding="utf-8")
QUERIES, KEYS = "attn/FusedRotary", "attn/FusedRotary_1"


def test_golden(golden: Golden):
    program = program_from_text(BEFORE)
    report = run_pass(FuseRotary(), program)
    golden("fuse-rotary.after.txt", text_of(program))
    assert report.rewrites == (QUERIES, KEYS)
    assert report.skips == ()
    assert program.functions == {"FusedRotary": FUSED_ROTARY}


def test_a_second_run_rewrites_nothing():
    program = program_from_text(BEFORE)
    run_pass(FuseRotary(), program)
    once = text_of(program)
    report = run_pass(FuseRotary(), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == once


def test_the_small_graph_gives_the_same_bits():
    random = np.random.default_rng(1)
    program = program_from_text(BEFORE)
    inputs = {
        tensor.name: random.standard_normal(tensor.shape, dtype=np.float32)
        for tensor in program.graph.inputs
    }
    wanted = run_program(program, inputs)
    run_pass(FuseRotary(), program)
    found = run_program(program, inputs)
    q, cos, sin = inputs["q"], inputs["cos"], inputs["sin"]
    turned = np.concatenate([-q[..., 3:], q[..., :3]], axis=-1)
    assert found["q_rot"].tobytes() == (q * cos + turned * sin).tobytes()
    for name, value in wanted.items():
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize(
    ("phase", "past", "valid"), [("prefill", 0, WINDOW), ("prefill", 5, 4), ("decode", 8, 1)]
)
@pytest.mark.parametrize("norms_first", [False, True])
def test_traced_models(
    traced_models: TracedModels, norms_first: bool, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs("own-head-dim").programs[phase],
        traced_models.checkpoint("own-head-dim"),
    )
    run_pass(FoldConstants(), program)
    if norms_first:
        run_pass(FuseRMSNorm(), program)
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    wanted = run_program(program, inputs, checkpoint)
    rotated = [f"model.layers.{i}.self_attn/{name}" for i in range(2) for name in ("Add", "Add_1")]
    report = run_pass(FuseRotary(), program)
    assert report.rewrites == tuple(
        f"model.layers.{i}.self_attn/{name}"
        for i in range(2)
        for name in ("FusedRotary", "FusedRotary_1")
    )
    assert report.skips == ()
    made = [node.outputs[0].name for node in program.graph.nodes if node.op == "FusedRotary"]
    assert sorted(made) == rotated
    found = run_program(program, inputs, checkpoint)
    for output, value in wanted.items():
        assert found[output].tobytes() == value.tobytes(), output


def test_a_name_that_is_taken_is_not_given_again():
    text = changed(BEFORE, {"attn/Slice_2": "attn/FusedRotary"})
    report = run_pass(FuseRotary(), program_from_text(text))
    assert report.rewrites == (KEYS, "attn/FusedRotary_2")


DECLINED = {
    "unequal halves": (
        {"q_low = Slice (q, zero, half": "q_low = Slice (q, zero, step"},
        "it joins the entries 3:9223372036854775807 and 0:1 of q, expected its halves",
    ),
    "a half from the middle": (
        {"q_high = Slice (q, half, end": "q_high = Slice (q, step, end"},
        "it joins the entries 1:9223372036854775807 and 0:3 of q, expected its halves",
    ),
    "another axis": (
        {"q_high = Slice (q, half, end, axis": "q_high = Slice (q, half, end, step"},
        "attn/Slice is along axis 1, expected the last",
    ),
    "joined on another axis": (
        {"Concat <axis: int = -1>": "Concat <axis: int = 2>"},
        "it joins on axis 2, expected the last",
    ),
    "every other entry": (
        {"q_high = Slice (q, half, end, axis, step": "q_high = Slice (q, half, end, axis, half"},
        "attn/Slice takes every entry number 3",
    ),
    "computed bounds": (
        {
            '["attn/Slice"] q_high = Slice (q, half,': '["attn/Abs"] bound = Abs (half)\n'
            '["attn/Slice"] q_high = Slice (q, bound,',
        },
        "attn/Slice is not of one axis with constant bounds",
    ),
    "parts of two tensors": (
        {"q_low = Slice (q,": "q_low = Slice (q_cos,"},
        "it joins parts of q and q_cos",
    ),
    "the turned half is added": (
        {"q_sin = Mul (q_turned, sin)": "q_sin = Add (q_turned, sin)"},
        "it is not read by one product with the sine",
    ),
    "the products are subtracted": (
        {"q_rot = Add (q_cos": "q_rot = Sub (q_cos"},
        "attn/Mul_1 is not read by one sum",
    ),
    "another tensor meets the cosine": (
        {"q_cos = Mul (q, cos)": "q_cos = Mul (sin, cos)"},
        "attn/Add does not add the product of q and the cosine",
    ),
    "nothing meets the cosine": (
        {"q_cos = Mul (q, cos)": "q_cos = Add (q, cos)"},
        "attn/Add does not add the product of q and the cosine",
    ),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_only_looks_like_it_is_declined(case: str):
    replaced, reason = DECLINED[case]
    report = FuseRotary().run(program_from_text(changed(BEFORE, replaced)))
    assert {skip.node: skip.reason for skip in report.skips} == {"attn/Concat": reason}
    assert report.rewrites == (QUERIES,)


def test_a_concat_that_turns_nothing_is_no_candidate():
    text = changed(
        BEFORE,
        {"Concat <axis: int = -1> (q_neg, q_low)": "Concat <axis: int = -1> (q_high, q_low)"},
    )
    report = run_pass(FuseRotary(), program_from_text(text))
    assert (report.rewrites, report.skips) == ((QUERIES,), ())


def test_options():
    assert FuseRotary().promise() == Contract.exact()
    assert FuseRotary().required() == ()
    assert FuseRotary.after == ("fold-constants",)
    assert FuseRotary.phases == ("prefill", "decode")
