"""The passes that a user adds, wherever they may stand among the others."""

import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest
from program_runs import run_pass, run_program, traced_inputs
from traced_models import VOCABULARY, TracedModels

from compiler.contracts.pass_base import Pass
from compiler.contracts.program import Phase
from passes.eliminate_dead import EliminateDead
from passes.fold_constants import FoldConstants
from passes.fold_mask import FoldMask
from passes.fuse_attention import FuseAttention
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_qkv import FuseQKV
from passes.fuse_rms_norm import FuseRMSNorm
from passes.fuse_rotary import FuseRotary
from passes.fuse_silu_mul import FuseSiluMul
from passes.insert_strided_slice import InsertStridedSlice
from passes.keep_qkv_bias import KeepQKVBias
from passes.pad_vocabulary import PadVocabulary
from passes.plan_kv_cache import PlanKVCache
from passes.store_weights import StoreWeights

ADDED: tuple[Pass, ...] = (FuseQKV(), FuseGateUp(), FuseRotary(), EliminateDead())
CANONICAL: tuple[Pass, ...] = (FoldMask(), PlanKVCache(), InsertStridedSlice())
FUSIONS: tuple[Pass, ...] = (FuseAttention(), FuseRMSNorm(), FuseSiluMul())
PAD, STORE = PadVocabulary(multiple=24), StoreWeights()
PIPELINES: dict[str, tuple[Pass, ...]] = {
    "before the cache is planned": (*ADDED, *CANONICAL, PAD, *FUSIONS, STORE),
    "before the fusions": (*CANONICAL, *ADDED, PAD, *FUSIONS, STORE),
    "after the fusions": (*CANONICAL, *FUSIONS, PAD, *ADDED, STORE),
}
# Of two layers.
REWRITES = {
    "fuse-qkv": 2,
    "fuse-gate-up": 2,
    "fuse-rotary": 4,
    "pad-vocabulary": 1,
    "plan-kv-cache": 4,
    "fuse-attention": 2,
    "fuse-rms-norm": 5,
    "fuse-silu-mul": 2,
    "store-weights": 2 * 4 + 1,
}


@pytest.mark.parametrize(("phase", "past", "valid"), [("prefill", 5, 4), ("decode", 8, 1)])
@pytest.mark.parametrize("place", PIPELINES)
def test_all_fire_and_give_the_same_numbers(
    traced_models: TracedModels, place: str, phase: Phase, past: int, valid: int
):
    program, checkpoint = (
        traced_models.programs("gqa").programs[phase],
        traced_models.checkpoint("gqa"),
    )
    (invariant,) = KeepQKVBias().invariants(program)
    inputs = traced_inputs(program, past=past, valid=valid, vocabulary=VOCABULARY)
    run_pass(FoldConstants(), program)
    wanted = run_program(program, inputs, checkpoint)
    for rewriting in PIPELINES[place]:
        if phase not in rewriting.phases:
            continue
        report = run_pass(rewriting, program)
        assert invariant.violations(program) == (), rewriting.name
        assert report.skips == (), rewriting.name
        expected = REWRITES.get(rewriting.name, len(report.rewrites))
        assert len(report.rewrites) == expected, rewriting.name
        before = inputs
        inputs = rewriting.adapt_inputs(inputs, program)
        wanted = rewriting.adapt_outputs(wanted, before, program)
    found = run_program(program, inputs, checkpoint)
    for name, value in wanted.items():
        kept = found[name][:, :valid] if name == "logits" else found[name]
        value = value[:, :valid] if name == "logits" else value
        np.testing.assert_allclose(kept, value, rtol=1e-4, atol=1e-4, err_msg=name)


def _calls(work: Callable[[], object]) -> int:
    """How many functions it calls: its time, without the machine's other load."""
    count = 0

    def counted(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_work_grows_as_the_layers_do(traced_models: TracedModels):
    """Four times the layers: a pass that looks at each from each would do 16 times as much."""
    calls: dict[str, list[int]] = {}
    for layers in (3, 12):
        program = traced_models.programs("gqa", layers=layers).programs["prefill"]
        for rewriting in (FoldConstants(), *PIPELINES["before the fusions"]):
            done = calls.setdefault(rewriting.name, [])
            done.append(_calls(lambda one=rewriting, on=program: one.run(on)))
            program.prune_parameters()
    assert set(REWRITES) < set(calls)
    assert {
        name: found for name, found in calls.items() if not 2.5 < found[1] / found[0] < 4.2
    } == {}
