"""Decode of several prompts in one call: each gets what it gets alone, and weights stand once."""

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from attention_graph import CONTEXT, TEXT
from program_runs import reasons, run_pass, run_program
from program_text import Golden, changed, program_from_text, text_of
from staged_models import POINTS, staged
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.errors import CheckFailed
from compiler.contracts.pass_base import Contract
from compiler.contracts.program import Program
from compiler.contracts.slots import slot_name
from compiler.numerics.feeds import Lengths, program_feeds
from compiler.numerics.folded_run import folded_error
from passes.fold_batch import FoldBatch
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.plan_kv_cache import PlanKVCache

# The small attention over one token.
ONE_ROW = changed(
    TEXT,
    {
        "int64[1, 4] input_ids": "int64[1, 1] input_ids",
        "int64[1, 4] position_ids": "int64[1, 1] position_ids",
        "past + 4": "past + 1",
        "float[1, 4, 5] logits": "float[1, 1, 5] logits",
        "tokens = {4}": "tokens = {1}",
        "{1, 4, 2, 3}": "{1, 1, 2, 3}",
        "{1, 4, 1, 3}": "{1, 1, 1, 3}",
        "{1, 1, 2, 4, 3}": "{1, 1, 2, 1, 3}",
        "{1, 2, 4, 3}": "{1, 2, 1, 3}",
        "{1, 4, 6}": "{1, 1, 6}",
    },
)
THREE = FoldBatch(batch=3)
FOLDED = (
    "llvm",
    "all",
    "int8",
    "int8 cache",
    "bfloat16 cache",
    "bfloat16 and its cache",
    "stored bfloat16",
    "packed int8",
    "packed bfloat16",
)


def decode(traced_models: TracedModels, name: str, point: str) -> Program:
    return staged(traced_models, name, POINTS[point]).programs.programs["decode"]


def error_of(traced_models: TracedModels, name: str, single: Program, folded: Program) -> float:
    read = traced_models.checkpoint(name).rows
    return folded_error(single, folded, read, batch=3, vocabulary=VOCABULARY)


def test_golden(golden: Golden):
    """One row of queries, keys and values, as decode has them."""
    program = replace(program_from_text(ONE_ROW, context=CONTEXT), phase="decode", tokens=1)
    for rewriting in (FoldMask(), PlanKVCache(), FuseAttention()):
        assert run_pass(rewriting, program).rewrites
    report = run_pass(FoldBatch(batch=2), program)
    golden("fold-batch.after.txt", text_of(program))
    assert report.rewrites == ("attn/Prompts",)
    assert report.skips == ()


@pytest.mark.parametrize("point", FOLDED)
@pytest.mark.parametrize("name", ["gqa", "own-head-dim"])
def test_each_prompt_gets_what_it_gets_alone(traced_models: TracedModels, name: str, point: str):
    single = decode(traced_models, name, point)
    folded = single.copy()
    report = run_pass(THREE, folded)
    assert report.skips == ()
    assert report.rewrites == tuple(f"model.layers.{n}.self_attn/Prompts" for n in range(2))
    assert error_of(traced_models, name, single, folded) < 0.1
    assert folded.weights == single.weights


def test_the_signature_names_every_cache(traced_models: TracedModels):
    single = decode(traced_models, "gqa", "int8 cache")
    folded = single.copy()
    run_pass(THREE, folded)
    shapes = {spec.name: spec.shape for spec in folded.inputs()}
    assert shapes["input_ids"] == (1, 3)
    assert shapes["past_length"] == shapes["valid_length"] == (3,)
    outputs = {spec.name: spec.shape for spec in folded.outputs()}
    assert outputs["logits"] == (1, 3, VOCABULARY)
    for present, past in single.aliases.items():
        for slot in range(3):
            assert folded.aliases[slot_name(present, slot)] == slot_name(past, slot)
    assert len(folded.aliases) == 3 * len(single.aliases)
    assert set(folded.aliases) < set(outputs)
    assert set(folded.aliases.values()) < set(shapes)
    assert sum(node.op == "MatMul" for node in folded.graph.nodes) == sum(
        node.op == "MatMul" for node in single.graph.nodes
    )


def test_the_same_prompt_thrice_is_adapted(traced_models: TracedModels):
    single = decode(traced_models, "gqa", "llvm")
    folded = single.copy()
    run_pass(THREE, folded)
    checkpoint = traced_models.checkpoint("gqa")
    inputs = program_feeds(single, Lengths(5, 1), vocabulary=VOCABULARY)
    wanted = THREE.adapt_outputs(run_program(single, inputs, checkpoint), inputs, folded)
    found = run_program(folded, THREE.adapt_inputs(inputs, folded), checkpoint)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def _node(program: Program, op: str, suffix: str = "") -> gs.Node:
    return next(n for n in program.graph.nodes if n.op == op and n.name.endswith(suffix))


def _exchange(program: Program, op: str, index: int) -> None:
    """Slot 1 and slot 2 take each other's."""
    stem = next(n.name for n in program.graph.nodes if n.op == op and "slot" not in n.name)
    one, other = (_node(program, op, f"{stem}.slot{slot}") for slot in (1, 2))
    one.inputs[index], other.inputs[index] = other.inputs[index], one.inputs[index]


@pytest.mark.parametrize(
    ("op", "index"),
    [
        ("FusedAttention", 0),
        ("FusedAttention", 1),
        ("FusedAttention", 3),
        ("CacheUpdate", 1),
        ("CacheUpdate", 2),
    ],
)
def test_what_belongs_to_another_prompt_shows(traced_models: TracedModels, op: str, index: int):
    single = decode(traced_models, "gqa", "llvm")
    folded = single.copy()
    run_pass(THREE, folded)
    _exchange(folded, op, index)
    with pytest.raises(CheckFailed, match="3 prompts together do not give") as caught:
        error_of(traced_models, "gqa", single, folded)
    assert caught.value.code == "prompts-differ"


def test_a_prompt_that_takes_part_unasked_shows(traced_models: TracedModels):
    single = decode(traced_models, "gqa", "llvm")
    folded = single.copy()
    run_pass(THREE, folded)
    last = next(n for n in folded.graph.nodes if n.op == "CacheUpdate" and "slot2" in n.name)
    first = next(n for n in folded.graph.nodes if n.op == "CacheUpdate" and "slot" not in n.name)
    last.inputs[3] = first.inputs[3]
    with pytest.raises(CheckFailed, match="3 prompts together do not give"):
        error_of(traced_models, "gqa", single, folded)


def test_one_prompt_is_left_alone(traced_models: TracedModels):
    program = decode(traced_models, "gqa", "llvm")
    before = text_of(program)
    report = run_pass(FoldBatch(batch=1), program)
    assert (report.rewrites, report.skips) == ((), ())
    assert text_of(program) == before


@pytest.mark.parametrize(
    ("point", "node", "reason"),
    [
        ("trace", "graph", "it has no static caches: plan-kv-cache declined"),
        ("plan-kv-cache", "Unsqueeze", "it reads a cache and is no FusedAttention"),
    ],
)
def test_graphs_that_are_declined(traced_models: TracedModels, point: str, node: str, reason: str):
    program = decode(traced_models, "gqa", point)
    before = text_of(program)
    (skip,) = run_pass(THREE, program).skips
    assert node in skip.node
    assert skip.reason == reason
    assert text_of(program) == before


def test_a_second_run_declines(traced_models: TracedModels):
    program = decode(traced_models, "gqa", "llvm")
    run_pass(THREE, program)
    once = text_of(program)
    report = run_pass(THREE, program)
    assert reasons(report) == {"input_ids": "a call takes several tokens already"}
    assert text_of(program) == once


def _change(node: gs.Node, how: str) -> None:
    match how:
        case "op":
            node.op = "CumSum"
        case "axis":
            node.attrs["axis"] = 1
        case "perm":
            node.attrs["perm"] = [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("op", "suffix", "how", "reason"),
    [
        ("FusedSiluMul", "", "op", "CumSum is not known to work row by row"),
        ("Concat", "self_attn/Concat_7", "axis", None),
        ("Transpose", "self_attn/Transpose_1", "perm", None),
    ],
)
def test_rows_that_meet_are_declined(
    traced_models: TracedModels, op: str, suffix: str, how: str, reason: str | None
):
    program = decode(traced_models, "own-head-dim", "llvm")
    _change(_node(program, op, suffix), how)
    report = THREE.run(program)
    assert report.rewrites == ()
    (skip,) = report.skips
    assert reason is None or skip.reason == reason


def test_options():
    assert FoldBatch() == FoldBatch(batch=2)
    assert FoldBatch(batch=2).promise() == Contract.close(rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="batch is 0"):
        FoldBatch(batch=0)
